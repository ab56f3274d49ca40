"""What a preset does, in words and as a density."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from psa_triton.config import PSAConfig, Reuse

_GROUP_NAMES = {2: "pairs", 4: "groups of four", 8: "groups of eight"}


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
        return 0.0, mean_budget(config)
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


def mean_budget(config: PSAConfig) -> float:
    """The budget, or the mean of `budget_table` over layers and steps."""
    if not config.budget_table:
        return config.budget
    ends = [*(row.start for row in config.budget_table[1:]), 1.0]
    return sum((end - row.start) * fmean(row.budgets) for row, end in zip(config.budget_table, ends, strict=True))


def explain(config: PSAConfig) -> list[str]:
    """Sentences on what a query block reads, how levels are chosen and what it costs, to be shown to people."""
    if config.mask_mode == "budget":
        return [*_budget(config), *_selection(config), _order(config), *_steps(config)]
    return [*_levels(config), *_selection(config), _density_in_words(config), _order(config), *_steps(config)]


def _cost(level: int) -> float:
    return 1 / level if level else 0.0


def _density(config: PSAConfig, full: float) -> float:
    """Density when the blocks' shares are those of `mask_ratios`, the first `full` of them read in full anyway."""
    return full + sum(max(0.0, hi - max(lo, full)) * _cost(level) for level, (lo, hi) in config.mask_ratios.items())


def _blocks(config: PSAConfig) -> str:
    return f"Keys are cut into blocks of {config.block_n} tokens, queries into blocks of {config.block_m}."


def _budget(config: PSAConfig) -> Iterator[str]:
    yield (
        f"{_blocks(config)} For each query block, every key block is read in full, averaged in groups of 2, 4, 8, ..., "
        "or skipped: whichever choice leaves the least expected error at the density that is paid for."
    )
    included = f"the estimate of importance ({config.importance}) and the blocks that must be read in full included."
    if not config.budget_table:
        yield f"Density: at most {config.budget:.2%}, {included}"
        return
    yield f"Density: at most, by layer and denoising step, {included}"
    for row in config.budget_table:
        budgets = ", ".join(f"{budget:.1%}" for budget in row.budgets)
        yield f"- from {row.start:.0%} of the steps on: {budgets}"
    yield f"That is {mean_budget(config):.2%} on average; {config.budget:.2%} where layers and steps are not known."


def _levels(config: PSAConfig) -> Iterator[str]:
    yield f"{_blocks(config)} For each query block, the key blocks in the order of their importance:"
    first = True
    for level, (lo, hi) in config.mask_ratios.items():
        if lo == hi:
            continue
        yield f"- {_who(config, lo, hi, first)} {_how(level)}"
        first = False


def _who(config: PSAConfig, lo: float, hi: float, first: bool) -> str:
    rest = hi == 1.0
    if config.mask_mode == "topk":
        if rest:
            return "all key blocks are" if first else f"the remaining {hi - lo:.0%} are"
        return f"the most important {hi:.0%} of key blocks are" if first else f"the next {hi - lo:.0%} are"
    if rest:
        return "all key blocks are" if first else f"those that hold the last {hi - lo:.0%} of the importance are"
    if first:
        return f"the fewest key blocks that together hold {hi:.0%} of the importance are"
    return f"the next ones, up to {hi:.0%} of the importance, are"


def _how(level: int) -> str:
    if level == 0:
        return "skipped (no cost)."
    if level == 1:
        return "read in full (level 1)."
    groups = _GROUP_NAMES.get(level, f"groups of {level}")
    return f"averaged in {groups} (level {level}, 1/{level} of the cost)."


def _selection(config: PSAConfig) -> Iterator[str]:
    if config.mask_mode == "thresholdbound":
        yield f"However importance is spread, more than {config.min_full_ratio:.0%} of key blocks are read in full."
    if config.keep_first_block:
        yield "The first key block is read in full whatever its importance."
    if config.use_sim_mask:
        caps = config.sim_thresholds
        yield (
            "A key block is averaged by 2, 4, 8 only where its neighbouring keys are alike "
            f"(mean cosine similarity from {caps.x2:g}, {caps.x4:g}, {caps.x8:g}), and read more finely elsewhere."
        )


def _density_in_words(config: PSAConfig) -> str:
    low, high = density_bounds(config)
    if low == high:
        return f"Expected density: {low:.2%}, whatever the input (up to rounding to whole blocks)."
    return (
        f"Expected density: depends on the input, from {low:.2%} where importance is peaked to {high:.2%} where it is "
        "even (up to rounding to whole blocks)."
    )


def _order(config: PSAConfig) -> str:
    if config.use_rearrange:
        return f"Tokens are put in {config.rearrange_method} order first, so that a block holds neighbours."
    return "Tokens stay in the model's own order."


def _steps(config: PSAConfig) -> Iterator[str]:
    if config.warmup_steps:
        yield f"The first {config.warmup_steps} denoising steps run dense."
    if config.reuse is not None:
        yield from _reuse(config.reuse)


def _reuse(reuse: Reuse) -> Iterator[str]:
    if reuse.max_error is not None:
        yield (
            "In each denoising step a layer repeats its last output, runs sparse with what that lacked when it was "
            "last compared with dense attention, or runs dense: whichever is the cheapest whose measured error is at "
            f"most {reuse.max_error:g}."
        )
        if reuse.middle_tolerance != 1:
            yield f"In the middle of the schedule it may be {reuse.middle_tolerance:g} times that."
        return
    when = f"every {reuse.refresh_every} denoising steps" if reuse.refresh_every else f"at steps {reuse.refresh_steps}"
    turns = f", in turn by {reuse.layer_groups} groups" if reuse.layer_groups > 1 else ""
    yield f"Layers run dense at first and {when}{turns}; what sparse attention lacked is added in the steps between."
    if reuse.sparse_every != 1:
        sparse = (
            f"Between them every {reuse.sparse_every} steps run sparse, at both ends of the schedule twice as many"
            if reuse.runs_sparse
            else "None runs sparse"
        )
        yield f"{sparse}, the others repeat the last output."
