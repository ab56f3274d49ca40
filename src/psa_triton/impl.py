"""Which implementation runs: what the caller asked for, what the tensors allow, what is installed."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Final, Literal

import torch
from packaging.version import Version
from torch import Tensor

Impl = Literal["auto", "reference", "torch", "cpu", "triton"]

IMPLEMENTATIONS: Final = ("reference", "torch", "cpu", "triton")
"""The definition, written to be read; torch's operations, on any device; the same as suits a CPU; GPU kernels."""

TRITON_WANTED: Final = "3.6"
"""Oldest Triton that the GPU kernels run on."""

TRITON_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


def check_impl(impl: Impl) -> Impl:
    """`impl`, whether or not it can run here.

    Raises:
        ValueError: an unknown implementation.
    """
    if impl not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"impl: expected 'auto' or one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    return impl


def resolve_impl(impl: Impl, x: Tensor) -> Impl:
    """The implementation that runs on tensors like `x`: `impl`, or the fastest that can if it is `auto`.

    `auto` is `cpu` on CPU tensors and `triton` on CUDA and ROCm tensors; `torch` on other devices, where Triton is
    missing or too old (on Windows, say), on NVIDIA GPUs before Ampere, for which Triton multiplies no matrices, and on
    a GPU for float64, which its kernels do not compute in.

    Raises:
        ValueError: an unknown implementation, or one that cannot run on such tensors, and why.
        ImportError: the GPU kernels are asked for and Triton is missing or too old.
    """
    check_impl(impl)
    if impl == "auto":
        if x.device.type == "cpu":
            return "cpu"
        impl = "triton" if x.dtype in TRITON_DTYPES and runs_triton(x.device) else "torch"
    if impl == "cpu" and x.device.type != "cpu":
        raise ValueError(f"impl: 'cpu' expects CPU tensors, got {x.device}; move them, or use impl='auto'")
    if impl == "triton":
        _check_triton(x)
    return impl


def runs_triton(device: torch.device) -> bool:
    """Whether `auto` runs GPU kernels there, for dtypes that they compute in."""
    return device.type == "cuda" and _TRITON_PROBLEM is None and _multiplies_matrices(device)


def _multiplies_matrices(device: torch.device) -> bool:
    """Whether Triton's products use this GPU's matrix units. Graphs take it for granted: they cannot ask."""
    if torch.version.hip is not None or torch.compiler.is_compiling() or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def is_interpreting() -> bool:
    """Whether Triton runs kernels on the CPU, in its interpreter (`TRITON_INTERPRET=1` before it is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _check_triton(x: Tensor) -> None:
    if x.dtype not in TRITON_DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in TRITON_DTYPES)
        raise ValueError(f"impl: 'triton' computes in {known}, got {x.dtype}; use impl='torch'")
    if x.device.type not in ("cuda", "meta") and not is_interpreting():
        raise ValueError(f"impl: 'triton' expects CUDA or ROCm tensors, got {x.device}; move them, or use impl='auto'")
    if _TRITON_PROBLEM is not None:
        raise ImportError(_TRITON_PROBLEM)


def triton_version() -> str | None:
    """Version of the installed Triton, or None. ROCm builds of torch bring it under another name."""
    for name in ("triton", "pytorch-triton-rocm", "triton-rocm", "pytorch-triton"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def triton_problem(installed: str | None) -> str | None:
    """What is wrong with the `installed` version of Triton (None: there is none), or None."""
    if installed is not None and Version(installed) >= Version(TRITON_WANTED):
        return None
    came = "none is installed" if installed is None else f"{installed} is installed"
    return (
        f"impl: 'triton' needs triton >= {TRITON_WANTED} and {came}; "
        f"run pip install 'triton>={TRITON_WANTED}', or use impl='torch'"
    )


_TRITON_PROBLEM = triton_problem(triton_version())
