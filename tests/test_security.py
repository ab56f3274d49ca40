"""Nothing that comes with a model or a settings file is run as code."""

import ast

import pytest
from programs import ROOT, python

from psa_triton.presets import PresetError, load_presets_file

SOURCES = [
    *(ROOT / "src").rglob("*.py"),
    *(ROOT / "examples").rglob("*.py"),
    *(ROOT / "qwen2.5-vl-example").rglob("*.py"),
]
RUNS_A_FILE = ROOT / "src/psa_triton/tools/generation/model_configs.py"
"""Settings that people write in Python; SECURITY.md says so."""
FORBIDDEN = {"eval", "exec", "runpy.run_path", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}


def name(call):
    return ast.unparse(call.func)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_code_comes_from_data(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not imported & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
        if not isinstance(node, ast.Call):
            continue
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert options.get("trust_remote_code", "False") == "False"
        if name(node) == "torch.load":
            assert options.get("weights_only") == "True", "tensors and nothing else"
        assert options.get("Loader", "yaml.SafeLoader") == "yaml.SafeLoader"
        assert file == RUNS_A_FILE or name(node) not in FORBIDDEN


def test_a_presets_file_cannot_run_code(tmp_path):
    file, trace = tmp_path / "presets.yaml", tmp_path / "trace"
    file.write_text(
        f"tiny-wan: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trace}']]"
    )
    with pytest.raises(PresetError, match="does not parse"):
        load_presets_file(file)
    assert not trace.exists()


def test_importing_the_library_opens_no_connection_and_reads_no_settings():
    script = """
import sys, torch, yaml, pydantic
def watch(event, arguments):
    settings = event == "open" and str(arguments[0]).endswith((".yaml", ".json", ".safetensors"))
    if settings or event.startswith("socket."):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(watch)
import psa_triton
psa_triton.psa_attention, psa_triton.PSAConfig, psa_triton.apply_psa
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
