"""Kernels compiled beforehand, in as many processes as there are cores: one after another they would take minutes.

What a benchmark runs is run on the `meta` device, where tensors have shapes and no data, and its launches are recorded.
Every process compiles a share of them; Triton keeps the results in its cache, where the benchmark finds them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from psa_triton import importance
from psa_triton.gpu import Launch
from psa_triton.importance import scoring_triton
from psa_triton.kernels import ops
from psa_triton.kernels.triton import tiles
from psa_triton.levels import choice

Work = Callable[[torch.device], Iterable[Callable[[], Any]]]
"""What a benchmark runs on a device, piece by piece: a function of a module, so that processes can be told of it."""


def compile_all(work: Work, *arguments: Any) -> dict[str, int]:
    """Compile for the GPU of this machine what `work(device, *arguments)` launches."""
    count, target = os.cpu_count() or 1, driver.active.get_current_target()
    with processes(count) as pool:
        shares = [pool.submit(compile_share, target, i, count, work, *arguments) for i in range(count)]
        return {"processes": count, "kernels": sum(share.result() for share in shares)}


def processes(count: int) -> ProcessPoolExecutor:
    """Not forked: threads of torch and LLVM do not survive a fork."""
    return ProcessPoolExecutor(count, get_context("spawn"))


def compile_share(target: GPUTarget, index: int, count: int, work: Work, *arguments: Any) -> int:
    """Every `count`-th kernel from the `index`-th on, and how many these are."""
    name = f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)
    launches = list({_key(launch): launch for launch in recorded(work, *arguments, target=name)}.values())[index::count]
    for launch in launches:
        compile_launch(launch, target)
    return len(launches)


def compile_launch(launch: Launch, target: GPUTarget) -> Any:
    """Triton's compiled kernel for a GPU that need not be there, with the code of every stage in `asm`."""
    driver.set_active(AbsentGpu(target))
    return launch.kernel.warmup(**launch.arguments, **launch.constants, **launch.options, grid=launch.grid)


def recorded(work: Work, *arguments: Any, target: str = "interpreter") -> list[Launch]:
    """What `work` launches, with the tiles of `target`; nothing of it runs."""
    launches: list[Launch] = []
    with (
        _plain_operators(),
        patch.object(Launch, "run", lambda launch: launches.append(launch)),
        # The library takes its tiles by what torch was built for.
        patch.object(torch.version, "hip", "any" if target.startswith("gfx") else None),
        patch.object(tiles, "current_target", lambda device: target),
        patch.object(scoring_triton, "current_target", lambda device: target),
    ):
        for run in work(torch.device("meta"), *arguments):
            run()
    return launches


def record_launches(run: Callable[[], Any]) -> list[Launch]:
    """What `run` launches, and launches as ever."""
    launches: list[Launch] = []
    launch_now = Launch.run

    def record(launch: Launch) -> None:
        launches.append(launch)
        launch_now(launch)

    with patch.object(Launch, "run", record):
        run()
    return launches


def _key(launch: Launch) -> str:
    """What Triton compiles anew for: types, and of integers whether they are 1 or divide by 16."""
    kinds = [
        x.dtype if isinstance(x, torch.Tensor) else (x == 1, x % 16 == 0) if isinstance(x, int) else type(x)
        for x in launch.values
    ]
    return repr((launch.kernel.fn.__name__, launch.constants, launch.options, kinds))


@contextmanager
def _plain_operators() -> Iterator[None]:
    """Operators of torch as the functions that they are: on the `meta` device torch would only tell their shapes."""
    places = [(ops, "attend"), (ops, "attend_backward"), (importance, "_importance"), (choice, "_choose")]
    with ExitStack() as stack:
        for module, name in places:
            stack.enter_context(patch.object(module, name, getattr(module, name)._init_fn))
        yield


class AbsentGpu:
    """Stands for Triton's driver: names the target of a compilation, and has nothing to launch on."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return str(self._target)  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: str) -> int:
        return 0
