"""What the GPU kernels compile to, for GPUs that need not be there: `python benchmarks/compiled_kernels.py`.

The library runs on tensors of a 720p video that have no data; its launches are recorded and compiled as they are (same
specialisation, tile, warps, stages), and the machine code is read: registers, spills, shared memory, tensor-core
instructions. Run it without TRITON_INTERPRET. With `--triton FOLDER` it does so with the Triton of that folder too
(`pip install --no-deps --target FOLDER triton==3.6.0`).

Of Triton this takes what a launch on a GPU takes too: a driver that names the target, and `warmup`, which specialises
and compiles without launching. So arguments are typed by Triton's own rules, whatever its version.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
import triton
from gpu.prepare import compile_launch, processes, recorded
from harness import made_with, table
from triton.backends.compiler import GPUTarget

from psa_triton.blocks import Blocks
from psa_triton.config import SimThresholds
from psa_triton.gpu import Launch
from psa_triton.impl import is_interpreting
from psa_triton.importance import block_importance
from psa_triton.kernels import triton as kernels
from psa_triton.kernels.reading import Reading
from psa_triton.levels import densities_triton, select_levels, similarity_caps
from psa_triton.levels.budget import allocation_triton, spread_triton
from psa_triton.tools.bench.tiles import candidates, only

HEADS, TOKENS = 12, 75_600
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DIMS = (64, 128)

BY_TMA = "forward, TMA"
"""What sm_90 alone has, in 16 bits."""

Launches = dict[str, Launch]


@dataclass(frozen=True)
class Target:
    """A GPU, and what one of its multiprocessors offers to the programs on it."""

    gpu: GPUTarget
    shared: int
    """Bytes of shared memory that one program may use."""
    registers: int = 65_536
    """32-bit registers of a multiprocessor."""
    warps: int = 64


_NVIDIA = {80: (163, 64), 86: (99, 48), 89: (99, 48), 90: (227, 64), 100: (227, 64), 120: (99, 48)}
"""KiB of shared memory, and warps, by compute capability."""
TARGETS = {
    f"sm_{capability}": Target(GPUTarget("cuda", capability, 32), shared=kib * 1024, warps=warps)
    for capability, (kib, warps) in _NVIDIA.items()
} | {"gfx942": Target(GPUTarget("hip", "gfx942", 64), shared=64 * 1024)}


def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def video(dtype: torch.dtype, dim: int) -> torch.Tensor:
    """Queries, keys or values as a model hands them over: `[1, H, N, D]`, a view of `[1, N, H, D]`."""
    return meta(1, TOKENS, HEADS, dim, dtype=dtype).transpose(1, 2)


def forward(dtype: torch.dtype, dim: int, **settings: Any) -> None:
    kernels.pyramid_attention(*attention_inputs(dtype, dim, **settings))


def forward_by_tma(dtype: torch.dtype, dim: int) -> None:
    """The forward where a user's table names the kernel that nothing else chooses; on sm_90 alone."""
    with only(candidates("sm_90", "attend_tma", 2, dim)[0], "attend_tma"):
        forward(dtype, dim)


def backward(dtype: torch.dtype, dim: int, **settings: Any) -> None:
    q, *others = attention_inputs(dtype, dim, **settings)
    lse = meta(1, HEADS, TOKENS, dtype=torch.float32)
    kernels.pyramid_attention_backward(q, None, q, lse, q, *others)


def attention_inputs(
    dtype: torch.dtype,
    dim: int,
    *,
    block_n: int = 64,
    group: int = 1,
    is_causal: bool = False,
    pool_correction: str = "none",
    masked: bool = False,
    qk_dtype: str = "auto",
) -> tuple[Any, ...]:
    """q, k, v, levels, blocks and how they are read; `group` query heads share a key head."""
    k, v = (video(dtype, dim)[:, : HEADS // group] for _ in "kv")
    mask = meta(1, TOKENS, dtype=torch.bool) if masked else None
    blocks = Blocks(128, block_n, TOKENS, TOKENS, is_causal, mask)
    levels = meta(1, HEADS, blocks.rows, blocks.columns, dtype=torch.int8)
    return (video(dtype, dim), k, v, levels, blocks, Reading(1.0, pool_correction, 8, qk_dtype, "triton"))


def importance(
    dtype: torch.dtype, dim: int, *, method: str = "sampled", is_causal: bool = False, masked: bool = False
) -> None:
    x = video(dtype, dim)
    key_mask = meta(1, TOKENS, dtype=torch.bool) if masked else None
    block_importance(
        x, x, block_m=128, block_n=64, method=method, is_causal=is_causal, key_mask=key_mask, impl="triton"
    )


def selection(dtype: torch.dtype, dim: int, *, mode: str) -> None:
    ratios = {1: (0.0, 0.1), 2: (0.1, 0.15), 8: (0.15, 0.35), 0: (0.35, 1.0)}
    blocks = meta(1, HEADS, -(-TOKENS // 128), -(-TOKENS // 64), dtype=torch.float32)
    select_levels(blocks, ratios, mode=mode, impl="triton")


def allocation(dtype: torch.dtype, dim: int, *, block_n: int = 64) -> None:
    """What budget mode launches besides the estimate of importance."""
    spread_triton.group_spread(video(dtype, dim), Blocks(128, block_n, TOKENS, TOKENS))
    rows, blocks, steps = -(-TOKENS // 128), -(-TOKENS // block_n), block_n.bit_length()
    weights = meta(1, HEADS, rows, blocks, dtype=torch.float32)
    rates = meta(1, HEADS, steps, blocks, dtype=torch.float32)
    prices = meta(steps, blocks, dtype=torch.int32)
    allocation_triton.allocate(weights, rates, prices, meta(1, HEADS, rows, dtype=torch.int32))
    allocation_triton.prices_above(meta(1, HEADS, rows, dtype=torch.float32), weights, rates, prices)


def density(dtype: torch.dtype, dim: int, *, is_causal: bool = False) -> None:
    blocks = Blocks(128, 64, TOKENS, TOKENS, is_causal)
    densities_triton.read_density(meta(1, HEADS, blocks.rows, blocks.columns, dtype=torch.int8), blocks)


def caps(dtype: torch.dtype, dim: int) -> None:
    similarity_caps(video(dtype, dim), 64, SimThresholds(), impl="triton")


PATHS: dict[str, Callable[[torch.dtype, int], None]] = {
    "forward": forward,
    BY_TMA: forward_by_tma,
    "backward": backward,
    "sampled": importance,
}
"""What is launched for a dtype and a head dimension."""

VARIANTS: dict[str, Callable[[torch.dtype, int], None]] = {
    "forward, n=32": partial(forward, block_n=32),
    "forward, causal": partial(forward, block_n=128, is_causal=True, group=4),
    "forward, corrected": partial(forward, pool_correction="isotropic"),
    "forward, masked": partial(forward, is_causal=True, masked=True),
    "forward, int8": partial(forward, qk_dtype="int8"),
    "forward, int8, corrected": partial(forward, pool_correction="isotropic", qk_dtype="int8"),
    "forward, int8, causal": partial(forward, block_n=128, is_causal=True, group=4, qk_dtype="int8"),
    "backward, n=32": partial(backward, block_n=32),
    "backward, causal": partial(backward, block_n=128, is_causal=True, group=4),
    "backward, corrected": partial(backward, pool_correction="isotropic"),
    "backward, masked": partial(backward, is_causal=True, masked=True),
    "pooled": partial(importance, method="pooled"),
    "antidiagonal": partial(importance, method="antidiagonal"),
    "antidiagonal, masked": partial(importance, method="antidiagonal", is_causal=True, masked=True),
    "selection by rank": partial(selection, mode="topk"),
    "selection by mass": partial(selection, mode="thresholdbound"),
    "budget": allocation,
    "budget, n=32": partial(allocation, block_n=32),
    "antidiagonal, causal": partial(importance, method="antidiagonal", is_causal=True),
    "density": density,
    "density, causal": partial(density, is_causal=True),
    "similarity caps": caps,
}
"""The same with other blocks and masks; `--quick` leaves them out."""

QUICK = {"cuda": (("bf16", 128), ("fp16", 64)), "hip": (("bf16", 128),)}
"""Inputs that `--quick` compiles for."""


def record_launches(path: Callable[[torch.dtype, int], None], dtype: torch.dtype, dim: int, target: str) -> Launches:
    """What `path` launches on `target`, by name; a kernel launched again with the same choices counts once.

    Choices are constants, and which of its tensors a kernel goes without.
    """
    launches: Launches = {}
    for launch in recorded(lambda device: [partial(path, dtype, dim)], target=target):
        name = launch.kernel.fn.__name__.removeprefix("_").removesuffix("_kernel")
        if "SHIFT" in launch.constants:
            name += f" level {1 << launch.constants['SHIFT']}"
        while name in launches and choices(launches[name]) != choices(launch):
            name += "'"
        launches[name] = launch
    return launches


def choices(launch: Launch) -> tuple[dict[str, Any], list[bool]]:
    return launch.constants, [value is None for value in launch.values]


@dataclass(frozen=True)
class Case:
    """The kernels of one path for one kind of input on one GPU."""

    path: str
    target: str
    dtype: str
    dim: int

    def launches(self) -> Launches:
        return record_launches((PATHS | VARIANTS)[self.path], DTYPES[self.dtype], self.dim, self.target)


@dataclass(frozen=True)
class Compiled:
    """What a kernel became; sizes are bytes."""

    kernel: str
    case: Case
    warps: int
    stages: int
    triton: str = triton.__version__
    seconds: float = 0.0
    dots: int = 0
    """Matrix products in the kernel's source."""
    registers: int = 0
    """A thread's."""
    local: int = 0
    """A thread's memory off chip: spilled registers and arrays with addresses."""
    shared: int = 0
    programs: int | None = None
    """Programs that fit on a multiprocessor at a time; None where the sizes for it are not known."""
    instructions: int = 0
    tensor_core: dict[str, int] = field(default_factory=dict)
    """Tensor-core instructions by kind."""
    tma: int = 0
    """Loads of whole boxes."""
    loops: list[Loop] = field(default_factory=list)
    """Innermost loops, in the order of the code, and those with products alone if there are any; NVIDIA alone."""
    in_flight: int | None = None
    """Groups of loads that may still be on their way where such a loop waits for one; None where none loads ahead."""
    error: str | None = None


@dataclass(frozen=True)
class Loop:
    """An innermost loop of machine code."""

    instructions: int
    tensor_core: int
    """Of them, for matrix products."""
    asynchronous: int
    """Of them, loads straight to shared memory."""
    in_flight: int
    """Groups of loads that may be on their way where it waits, at most."""
    around: int
    """Instructions of the loop around it, without its own; 0 where there is none."""


def find_loops(text: str) -> list[Loop]:
    """The innermost loops in what `cuobjdump -sass` writes: those with matrix products, if there are any."""
    code = [
        (int(at, 16), what) for at, what in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", text, flags=re.MULTILINE)
    ]
    index = {at: i for i, (at, _) in enumerate(code)}
    spans = []
    for i, (_, what) in enumerate(code):
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", what)
        if jump and index.get(int(jump[1], 16), i) < i:
            spans.append((index[int(jump[1], 16)], i))
    inner = [s for s in spans if not any(s != t and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    loops = []
    for first, last in inner:
        body = [what for _, what in code[first : last + 1]]
        waits = [int(n, 16) for what in body for n in re.findall(r"DEPBAR\.LE SB0, (0x[0-9a-f]+)", what)]
        products = sum(bool(re.search(r"\b(UTC)?[A-Z]G?MMA\b", what)) for what in body)
        around = min(
            (t[1] - t[0] for t in spans if t != (first, last) and t[0] <= first and last <= t[1]), default=last - first
        )
        loads = sum("LDGSTS" in what for what in body)
        loops.append(Loop(len(body), products, loads, max(waits, default=0), around - (last - first)))
    return [loop for loop in loops if loop.tensor_core] or loops


def compile_case(case: Case, parts: list[str], quick: bool) -> list[Compiled]:
    """The kernels of a case whose name holds one of `parts`; of each kernel only its last launch if `quick`."""
    chosen = {name: launch for name, launch in case.launches().items() if any(part in name for part in parts)}
    if quick:
        last = {launch.kernel: name for name, launch in chosen.items()}
        chosen = {name: chosen[name] for name in last.values()}
    return [compile_kernel(name, launch, case) for name, launch in chosen.items()]


def compile_kernel(name: str, launch: Launch, case: Case) -> Compiled:
    target = TARGETS[case.target]
    made = Compiled(name, case, launch.warps, launch.stages)
    began = time.perf_counter()
    try:
        kernel = compile_launch(launch, target.gpu)
    except Exception as error:  # one kernel that does not compile shall not hide what the others became
        return replace(made, error=f"{type(error).__name__}: {error}")
    read = read_nvidia if target.gpu.backend == "cuda" else read_amd
    made = replace(
        made,
        seconds=time.perf_counter() - began,
        warps=kernel.metadata.num_warps,  # with those of partitions
        dots=len(re.findall(r"\b(tt\.dot|warp_group_dot)\b", kernel.asm.get("ttir") or kernel.asm["ttgir"])),
        shared=kernel.metadata.shared,
        **read(kernel.asm),
    )
    if made.shared > target.shared:
        return replace(made, error=f"wants {made.shared} bytes of shared memory, a program has {target.shared}")
    if target.gpu.backend == "cuda":
        made = replace(made, programs=programs_at_a_time(made, target, getattr(kernel.metadata, "tmem_size", 0) or 0))
    return made


def read_nvidia(asm: dict[str, Any]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    # /*0c80*/  @P0 HGMMA.64x128x16.F32.BF16 R24, ... ;
    names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z]\w+)", text, flags=re.MULTILINE)
    loops = find_loops(text)
    return dict(
        registers=usage["REG"],
        # Some kernels are given a frame that no instruction touches.
        local=usage["STACK"] + usage["LOCAL"] if {"LDL", "STL"} & set(names) else 0,
        instructions=len(names),
        # HMMA up to Ampere, HGMMA on Hopper, UTCHMMA and its like on Blackwell
        tensor_core=dict(Counter(name for name in names if re.fullmatch(r"(UTC)?[A-Z]G?MMA", name))),
        tma=names.count("UTMALDG"),
        loops=loops,
        in_flight=min((loop.in_flight for loop in loops if loop.asynchronous), default=None),
    )


def read_amd(asm: dict[str, Any]) -> dict[str, Any]:
    text = asm["amdgcn"]

    def fact(name: str) -> int:
        return int(re.search(rf"^\s+(?:- )?\.{name}:\s+(\d+)", text, flags=re.MULTILINE)[1])

    names = re.findall(r"^\t([a-z]\w+) ", text, flags=re.MULTILINE)
    return dict(
        registers=fact("vgpr_count"),
        local=fact("private_segment_fixed_size"),
        instructions=len(names),
        tensor_core=dict(Counter("MFMA" for name in names if name.startswith("v_mfma_"))),
    )


def programs_at_a_time(made: Compiled, target: Target, tensor_memory: int) -> int:
    """Programs on a multiprocessor: limited by registers, shared memory, warps, and Blackwell's tensor memory."""
    registers = made.warps * 32 * math.ceil(made.registers / 8) * 8
    limits = [target.registers // registers, target.warps // made.warps]
    limits.append((target.shared + 1024) // (made.shared + 1024))  # 1 KiB of each program is the system's
    if tensor_memory:
        limits.append(512 // tensor_memory)  # columns
    return min(limits)


def rows(results: list[Compiled]) -> list[str]:
    """A table with a row a kernel."""
    columns = "path kernel target dtype D warps stages registers local shared programs/SM instructions seconds"
    cells = [
        [
            *(r.case.path, r.kernel, r.case.target, r.case.dtype),
            *map(str, (r.case.dim, r.warps, r.stages, r.registers, r.local, r.shared)),
            *("-" if r.programs is None else str(r.programs), str(r.instructions), f"{r.seconds:.1f}"),
            r.error or " ".join(f"{count} {kind}" for kind, count in sorted(r.tensor_core.items())),
        ]
        for r in results
    ]
    return table([*columns.split(), "tensor-core"], cells)


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    if args.quick:
        inputs = [(target, *kind) for target in args.target for kind in QUICK[TARGETS[target].gpu.backend]]
    else:
        inputs = list(product(args.target, args.dtype, args.dim))
    cases = [Case(path, *kind) for path in (PATHS if args.quick else PATHS | VARIANTS) for kind in inputs]
    return [case for case in cases if case.path != BY_TMA or (case.target == "sm_90" and case.dtype != "fp32")]


def compiled_with(folder: Path) -> list[dict[str, Any]]:
    """What the same command finds with the Triton that is installed in `folder`."""
    if not (folder / "triton").is_dir():
        sys.exit(f"--triton: expected a folder with a package triton in it, got {folder}")
    paths = [str(folder.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "kernels.json")
        command = [sys.executable, __file__, *sys.argv[1:], "--triton", "--json", str(file)]  # the last ones count
        subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
        return json.loads(file.read_text())["kernels"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--kernel", nargs="+", default=[""], metavar="PART", help="kernels whose name holds one")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--dim", nargs="+", type=int, default=list(DIMS), help="head dimensions")
    parser.add_argument("--quick", action="store_true", help="fewer inputs, no variants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="kernels compiled at a time")
    parser.add_argument("--triton", nargs="*", type=Path, default=[], metavar="FOLDER", help="Tritons to try as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    if is_interpreting():
        sys.exit("TRITON_INTERPRET is set: kernels meant for the interpreter cannot be compiled; unset it")
    with processes(args.jobs) as pool:
        results = list(chain(*pool.map(partial(compile_case, parts=args.kernel, quick=args.quick), chosen_cases(args))))
    found = [asdict(r) for r in results]
    for folder in args.triton:
        found += compiled_with(folder)
    print(f"Kernels as launched on {HEADS} heads, {TOKENS} tokens; triton {triton.__version__}")
    print(*rows(results), sep="\n")
    print("local: bytes of spilled registers a thread; shared: bytes a program; seconds: to compile")
    if args.json:
        report = made_with("compiled_kernels") | {"kernels": found}
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if any(r["error"] for r in found) else 0


if __name__ == "__main__":
    sys.exit(main())
