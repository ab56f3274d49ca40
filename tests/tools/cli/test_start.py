"""How the command starts: what `--help` and a slip wait for, and the ways to call it."""

import json

import pytest
from programs import ROOT, python

HEAVY = "('torch', 'diffusers', 'transformers', 'accelerate', 'numpy', 'av', 'yaml')"
# Runs command lines as a program would, in one process, and tells their exit codes and what was imported for them.
REPORT = f"""if True:
    import json, sys
    from typer.testing import CliRunner
    from psa_triton.tools.cli.app import app
    codes = [CliRunner().invoke(app, arguments).exit_code for arguments in json.loads(sys.argv[1])]
    print(json.dumps([codes, [name for name in {HEAVY} if name in sys.modules]]))
"""
HELPS = [["--help"]]
HELPS += [
    [command, "--help"]
    for command in ("generate", "compare", "understand", "bench", "inspect", "tune", "doctor", "presets")
]
SLIPS = [
    ["generate", "--promt", "x"],
    ["generate", "--steps", "many"],
    ["generate", "--impl", "cuda"],
    ["compare", "--ceiling", "x"],
    ["inspect", "--query-blocks", "-1"],
    ["understand", "--prompt", "x"],
    ["tune"],
    ["generat"],
    ["presets", "lst"],
]
# The same for a script, which is imported and not run.
SCRIPT = f"""if True:
    import atexit, runpy, sys
    atexit.register(lambda: print("imported:", *(name for name in {HEAVY} if name in sys.modules)))
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_help_and_slips_import_nothing_heavy():
    done = python("-c", REPORT, json.dumps([*HELPS, *SLIPS]))
    codes, imported = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * len(HELPS) + [2] * len(SLIPS)
    assert imported == []


@pytest.mark.parametrize(
    "script", ["examples/inference/wan21/wan21_1.3b.py", "qwen2.5-vl-example/src/inference.py"], ids=["video", "answer"]
)
def test_help_of_the_scripts_neither(script):
    done = python("-c", SCRIPT, ROOT / script, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported:"]


def test_the_package_runs_as_a_module():
    done = python("-m", "psa_triton", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("psa-triton ")
