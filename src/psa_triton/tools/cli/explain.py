"""What a preset says, setting by setting, and the density that it comes to."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from pydantic import BaseModel

from psa_triton.config import PSAConfig


def density_bounds(config: PSAConfig) -> tuple[float, float]:
    """Least and greatest density that the selection of levels can give: sum of 1/level over a row's key blocks.

    With `topk` both are the same. With `thresholdbound` the least is reached when one block holds all importance,
    the greatest when all blocks are equally important: in the order of importance, the mass before a block is never
    less than the share of blocks before it. A similarity cap can only refine levels, at most every kept block to 1.
    Rounding to whole blocks and the exemptions of prefix and causal frontier are left out.

    A budget includes the estimate of importance, and what would avoid no error is not read: it is the greatest density,
    and there is no least.
    """
    if config.mask_mode == "budget":
        return 0.0, _mean_budget(config)
    if config.mask_mode == "topk":
        low = high = _density(config, full=0.0)
    else:
        full = config.min_full_ratio
        coarsest = [level for level, (lo, hi) in config.mask_ratios.items() if lo < hi][-1]
        low = full + (1 - full) * _cost(coarsest)
        high = _density(config, full)
    if config.use_sim_mask:
        skipped_from = config.mask_ratios.get(0, (1.0, 1.0))[0]
        high = max(high, skipped_from)
    return low, high


def density_in_words(config: PSAConfig | None) -> str:
    """The density of an attention, or its bounds; None is dense."""
    if config is None:
        return "100%"
    low, high = density_bounds(config)
    if low == high:
        return f"{low:.1%}"
    return f"{low:.1%} to {high:.1%}" if low else f"up to {high:.1%}"


def explain(config: PSAConfig) -> Iterator[str]:
    """The density, then each setting that is not the default with what it means: lines to be shown to people."""
    yield f"Density: {density_in_words(config)}"
    yield from _settings(config)


def _mean_budget(config: PSAConfig) -> float:
    """The budget, or the mean of `budget_table` over layers and steps."""
    if not config.budget_table:
        return config.budget
    ends = [*(row.start for row in config.budget_table[1:]), 1.0]
    return sum((end - row.start) * fmean(row.budgets) for row, end in zip(config.budget_table, ends, strict=True))


def _cost(level: int) -> float:
    return 1 / level if level else 0.0


def _density(config: PSAConfig, full: float) -> float:
    """Density when the blocks' shares are those of `mask_ratios`, the first `full` of them read in full anyway."""
    return full + sum(max(0.0, hi - max(lo, full)) * _cost(level) for level, (lo, hi) in config.mask_ratios.items())


def _settings(model: BaseModel, indent: str = "") -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value == field.default or name == "description":
            continue
        meaning = " ".join((field.description or "").split())
        if isinstance(value, BaseModel):
            yield f"{indent}{name}: {meaning}"
            yield from _settings(value, f"{indent}  ")
        elif isinstance(value, tuple) and isinstance(value[0], BaseModel):
            yield f"{indent}{name}: {meaning}"
            yield from (f"{indent}  {row}" for row in value)
        else:
            yield f"{indent}{name}: {value}"
            yield f"{indent}    {meaning}"
