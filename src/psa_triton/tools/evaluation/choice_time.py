"""How long choosing levels takes, measured apart from the run: inside it, clocks would hold up a GPU in every call."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

from psa_triton.impl import Impl
from psa_triton.levels import levels_of
from psa_triton.tools.evaluation.levels_record import LevelRecording

_REPEATS: Final = 3


def level_choice_seconds(pipe: Any, recording: LevelRecording, impl: Impl) -> float | None:
    """Seconds that all sparse calls of a run spent in choosing levels: importance, selection, similarity cap.

    One call's time, the median of three, times the calls. It is taken on random queries, keys and values of the run's
    shape and type, as the time does not depend on what they hold.

    Args:
        pipe: the pipeline that ran.
        recording: of the run.
        impl: implementation of the operator.

    Returns:
        None where no call was sparse.
    """
    if recording.layout is None or recording.config is None or recording.shape is None:
        return None
    layout, config, transformer = recording.layout, recording.config, pipe.transformer
    device, dim = pipe._execution_device, transformer.config.attention_head_dim
    generator = torch.Generator(device).manual_seed(0)
    shape = (*recording.shape[:2], layout.prefix_tokens + math.prod(layout.grid), dim)
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=transformer.dtype) for _ in range(3))

    def call() -> Tensor:
        return levels_of(q, k, v, config, prefix_tokens=layout.prefix_tokens, impl=impl)

    with torch.no_grad():
        call()
        return median(_seconds(call, device) for _ in range(_REPEATS)) * recording.calls


def _seconds(call: Any, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
