"""Programs as a user starts them, and scripts as modules."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def python(
    *words: object, cwd: Path | None = None, timeout: int = 900, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What a command line of Python does, with this checkout, offline and on one thread."""
    command, environment = [sys.executable, *map(str, words)], ENVIRONMENT | environment
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def load_script(file: Path) -> ModuleType:
    """A script that is not on the path."""
    spec = importlib.util.spec_from_file_location(file.stem.replace(".", "_"), file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def benchmark(name: str, folder: Path, *words: object, **environment: str) -> dict[str, Any]:
    """The report that a benchmark writes into `folder`."""
    done = python(ROOT / "benchmarks" / name, *words, "--output", folder, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())
