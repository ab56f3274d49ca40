"""What of this library runs on this machine, found out by trying: packages, devices, implementations, video files."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from psa_triton.attention import sparse_attention
from psa_triton.config import PSAConfig
from psa_triton.impl import IMPLEMENTATIONS, Impl, resolve_impl
from psa_triton.inputs import DTYPES
from psa_triton.integrations.reuse import kept_bytes
from psa_triton.kernels import pyramid_attention
from psa_triton.kernels.gathered.ways import choose_way
from psa_triton.models import MODELS
from psa_triton.presets import load_presets_file
from psa_triton.products import instructions
from psa_triton.tools.machine import hardware
from psa_triton.tools.shapes import find_shape

State = Literal["ok", "optional", "problem"]

_DISTRIBUTION: Final = "psa-triton"
_HEAD_DIMS: Final = (64, 128)
_CONFIG: Final = PSAConfig(block_m=32, block_n=32, use_rearrange=False)
# Error of a whole attention against float64, relative to the largest output: a few roundings of each dtype.
_TOLERANCE: Final = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        topic: `package`, `device`, `attention`, `video` or `presets`.
        name: what was looked at.
        state: `ok`; `optional` where something is missing that only some uses need; `problem` where it is needed.
        detail: what was found.
        remedy: what to run or change; empty where nothing is to be done.
    """

    topic: str
    name: str
    state: State
    detail: str
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Look at everything; takes a few seconds, on a GPU also the time to compile the kernels once."""
    presets = find_presets()
    memory = find_memory() if presets.state == "ok" else ()
    return [*find_packages(), *find_devices(), *find_attention(), find_video_encoder(), presets, *memory]


def find_packages(requirements: list[str] | None = None) -> Iterator[Finding]:
    """Each package that this library asks for (by default as its installed metadata says), and what is installed.

    A package of an extra is optional, but for Triton on a machine with a GPU.
    """
    wanted = importlib.metadata.requires(_DISTRIBUTION) or [] if requirements is None else requirements
    yield Finding("package", "python", "ok", platform.python_version())
    for requirement in map(Requirement, wanted):
        extra = _extra_of(requirement)
        if extra not in ("dev", None):
            yield _find_package(requirement, extra)


def _find_package(requirement: Requirement, extra: str) -> Finding:
    needed = not extra or (extra == "triton" and torch.cuda.is_available())
    missing: State = "problem" if needed else "optional"
    asked = f"{requirement.name}{requirement.specifier}"
    remedy = f"pip install '{_DISTRIBUTION}[{extra}]'" if extra else f"pip install '{asked}'"
    try:
        installed = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("package", requirement.name, missing, f"not installed, wanted {asked}", remedy)
    # Local builds such as 2.13.0+cpu satisfy what 2.13.0 does.
    if not requirement.specifier.contains(Version(installed).public, prereleases=True):
        return Finding("package", requirement.name, missing, f"{installed}, wanted {asked}", remedy)
    return Finding("package", requirement.name, "ok", installed)


def _extra_of(requirement: Requirement) -> str | None:
    """The extra whose requirement this is, as a marker `extra == "NAME"` says; "" for all; None: of no use here."""
    names = ["", *(importlib.metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or [])]
    marker = requirement.marker
    return next((name for name in names if marker is None or marker.evaluate({"extra": name})), None)


def find_devices() -> Iterator[Finding]:
    """The CPU and each GPU."""
    cpu = hardware(torch.device("cpu"))
    yield Finding("device", "cpu", "ok", f"{cpu['cpu']}, {instructions()}, {cpu['threads']} threads")
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = f"torch {torch.__version__} is built for {built or 'CPUs alone'}"
        yield Finding("device", "cuda", "optional", f"no GPU in sight; {why}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        size, capability = properties.total_memory / 2**30, f"{properties.major}.{properties.minor}"
        detail = f"{properties.name}, {size:.0f} GiB, compute capability {capability}"
        yield Finding("device", f"cuda:{index}", "ok", detail)
    yield _find_compiler()


def _find_compiler() -> Finding:
    """What Triton builds its launches with, at the first of each kernel."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_path("include"), "Python.h")
    missing = [what for what, there in (("C compiler", compiler), (str(header), header.exists())) if not there]
    if not missing:
        return Finding("device", "C compiler", "ok", f"{compiler}, with {header}")
    state: State = "problem" if torch.cuda.is_available() else "optional"
    detail = f"no {' and no '.join(missing)}: Triton needs them to launch kernels on a GPU"
    return Finding(
        "device", "C compiler", state, detail, "install gcc and Python's headers (build-essential, python3-dev)"
    )


def find_attention() -> Iterator[Finding]:
    """Which implementation `impl="auto"` runs for each device, dtype and head dimension, tried on small tensors."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in map(torch.device, devices):
        for dtype in DTYPES:
            for dim in _HEAD_DIMS:
                yield _try_attention(device, dtype, dim)


def _try_attention(device: torch.device, dtype: torch.dtype, dim: int) -> Finding:
    """Run the operator and hold it against the reference in float64, for the levels that it chose."""
    name = f"{device}, {str(dtype).removeprefix('torch.')}, head dimension {dim}"
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 200, dim, generator=generator).to(device, dtype) for _ in range(3))
    try:
        impl = resolve_impl("auto", q)
        error = _relative_error(q, k, v, impl)
    except Exception as failure:  # whatever goes wrong is what there is to tell
        reason = str(failure).partition("\n")[0] or type(failure).__name__
        return Finding("attention", name, "problem", f"fails: {reason}", f"use impl={IMPLEMENTATIONS[0]!r} (slow)")
    if not error <= _TOLERANCE[dtype]:
        detail = f"{impl}: error {error:.1e} against the definition, expected at most {_TOLERANCE[dtype]:.0e}"
        return Finding("attention", name, "problem", detail, "report it, with all that this command shows")
    ways = dict.fromkeys(choose_way(dtype, device, work).name for work in (0, math.inf))  # of short lists, of long
    way = f", {' or '.join(ways)}" if impl == "cpu" else ""
    return Finding("attention", name, "ok", f"{impl}{way} (error {error:.0e})")


def _relative_error(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, impl: Impl) -> float:
    out, levels = sparse_attention(q, k, v, _CONFIG, impl=impl)
    exact = pyramid_attention(
        q.double(), k.double(), v.double(), levels, block_m=_CONFIG.block_m, block_n=_CONFIG.block_n, impl="reference"
    )
    return float((out.double() - exact).abs().max() / exact.abs().max())


def find_video_encoder() -> Finding:
    """Whether videos can be written as H.264."""
    import av

    try:
        av.Codec("libx264", "w")
    except av.codec.codec.UnknownCodecError:
        remedy = "pip install --force-reinstall --only-binary av av"
        return Finding("video", "H.264 encoder", "problem", f"PyAV {av.__version__} has no libx264", remedy)
    return Finding("video", "H.264 encoder", "ok", f"libx264 in PyAV {av.__version__}")


def find_presets() -> Finding:
    """Whether the presets file that comes with the library can be read; people edit it in a checkout."""
    try:
        file = load_presets_file()
    except ValueError as mistakes:
        return Finding("presets", "attention_config.yaml", "problem", str(mistakes), "correct the file")
    count = sum(len(section.attention_configs) for section in file.sections.values())
    return Finding("presets", "attention_config.yaml", "ok", f"{count} presets of {len(file.sections)} models")


def find_memory() -> Iterator[Finding]:
    """What the presets that reuse attention keep from step to step, at the largest known size of each model."""
    sections = load_presets_file().sections
    for spec in MODELS.values():
        if not spec.sizes:
            continue
        shape = find_shape(spec.key)
        for name, preset in sections[spec.preset_section].attention_configs.items():
            config = preset.config()
            if config is None or config.reuse is None:
                continue
            calls = {"layers": int(spec.transformer["num_layers"] or 0), "passes": 1 if spec.guidance_scale == 1 else 2}
            size = {"tokens": shape.tokens, "heads": shape.heads, "head_size": shape.dim, "itemsize": 2}
            kept = kept_bytes(config.reuse, **calls, **size)
            place = "in the memory of the machine" if config.reuse.keep_on == "host" else "on the device"
            detail = f"keeps {kept / 2**30:.1f} GiB {place} from step to step, in 16 bits and with guidance"
            yield Finding("presets", f"{name} at {shape.name}", "ok", detail)
