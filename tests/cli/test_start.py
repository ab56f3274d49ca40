"""How the command starts: what `--help` and a slip wait for, and the ways to call it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
COMMANDS = ("generate", "compare", "understand", "bench", "inspect", "tune", "doctor", "presets")
HEAVY = "('torch', 'diffusers', 'transformers', 'accelerate', 'numpy', 'av', 'pydantic', 'yaml')"
# Runs a program as `python FILE` or `python -m MODULE` does, and tells what it has imported by the end.
REPORT = f"""if True:
    import atexit, runpy, sys
    atexit.register(lambda: print("imported:", *(m for m in {HEAVY} if m in sys.modules)))
    target = sys.argv.pop(1)
    if target.endswith(".py"):
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
"""


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT / "src"), "COLUMNS": "80"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(("--help",), 0, id="psa"),
        *(pytest.param((command, "--help"), 0, id=command) for command in COMMANDS),
        pytest.param(("generate", "--promt", "x"), 2, id="unknown option"),
        pytest.param(("generate", "--steps", "many"), 2, id="wrong type"),
        pytest.param(("compare", "--ceiling", "x"), 2, id="wrong word"),
        pytest.param(("generat",), 2, id="unknown command"),
    ],
)
def test_help_and_slips_import_nothing_heavy(arguments: tuple[str, ...], code: int) -> None:
    done = start("-c", REPORT, "psa_triton", *arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported:"]


@pytest.mark.parametrize("script", ["inference/wan21/wan21_1.3b.py", "inference/cogvideo/cogvideo_5b.py"])
def test_help_of_the_scripts_neither(script: str) -> None:
    done = start("-c", REPORT, str(CHECKOUT / "examples" / script), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported:"]


def test_the_package_runs_as_a_module() -> None:
    done = start("-m", "psa_triton", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("psa-triton ")
