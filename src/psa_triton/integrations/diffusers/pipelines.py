"""Pipelines, modular ones too, as far as PSA is concerned: their transformers, their scheduler, and which one runs."""

from __future__ import annotations

import inspect
from operator import itemgetter
from typing import Any

from torch import nn

from psa_triton.integrations.diffusers.families import family_name
from psa_triton.integrations.wrappers import library, parts, unwrap


def is_pipeline(target: Any) -> bool:
    """Whether it is a diffusers pipeline, of the one kind or the other."""
    return library(target) == "diffusers" and isinstance(getattr(target, "components", None), dict)


def transformers_of(pipe: Any) -> dict[str, Any]:
    """The transformers of a pipeline by name, as it holds them: wrapped perhaps.

    They are its `transformer` and `transformer_2`, and whatever else is of a known family; each once.
    """
    usual = ("transformer", "transformer_2")
    named = sorted(
        (item for item in parts(pipe) if item[0] in usual or family_name(unwrap(item[1]))), key=itemgetter(0)
    )
    first = {id(unwrap(part)): name for name, part in reversed(named)}
    return {name: part for name, part in named if first[id(unwrap(part))] == name}


def scheduler_of(pipe: Any) -> Any | None:
    """A pipeline's scheduler: its `scheduler`, else the one component that is one; None if there is none."""
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is not None:
        return scheduler
    others = [part for part in vars(pipe).values() if hasattr(part, "timesteps") and hasattr(part, "set_timesteps")]
    return others[0] if len(others) == 1 else None


def running_pipeline(transformer: nn.Module) -> Any | None:
    """The pipeline with this transformer and a scheduler whose `__call__` led here; None outside of any.

    Several pipelines may share a transformer, each with its own scheduler, and run in several threads. None of them
    tells a transformer whose call it works for, and there is no hook around a pipeline's call. The call stack is what
    knows, of every thread, and of pipelines too that PSA was never told of. `self` is all that is read.
    """
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        # Asking for the locals of any other frame might keep alive what they hold (Python before 3.13).
        if code.co_name == "__call__" and code.co_argcount > 0 and code.co_varnames[0] == "self":
            caller = frame.f_locals.get("self")
            if not isinstance(caller, nn.Module) and _runs(caller, transformer):
                return caller
        frame = frame.f_back
    return None


def _runs(caller: Any, transformer: nn.Module) -> bool:
    return any(unwrap(part) is transformer for _, part in parts(caller)) and scheduler_of(caller) is not None
