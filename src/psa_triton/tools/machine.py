"""What a figure was made with: versions and hardware, for sidecars and benchmark results."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

import psa_triton

_PACKAGES: Final = ("triton", "diffusers", "transformers", "torchmetrics")
_BUSY: Final = 1.25
"""Processes for each processor from which on programs wait for each other: torch alone makes 1 at most."""


def versions() -> dict[str, str]:
    """Versions of what figures depend on; packages that are not installed are left out."""
    # torch's own word names its build, CPU or CUDA, which the metadata of some wheels leaves out.
    found = {"python": platform.python_version(), "psa_triton": psa_triton.__version__, "torch": str(torch.__version__)}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """Names of the CPU and of the accelerator in use (None without), and the CPU threads torch uses."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": _cpu_name(), "gpu": gpu, "threads": torch.get_num_threads(), "device": str(device)}


def others_at_work() -> float | None:
    """Processes that wanted to run in the last minute, on average, if they are more than there are processors.

    None if not, or where the system does not tell, as on Windows.
    """
    if not hasattr(os, "getloadavg"):
        return None
    wanted = os.getloadavg()[0]
    return wanted if wanted > _BUSY * (os.cpu_count() or 1) else None


def _cpu_name() -> str:
    # platform.processor() is empty or just the architecture on most Linux systems.
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
