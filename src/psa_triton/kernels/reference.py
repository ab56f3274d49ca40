"""The definition of pyramid attention in plain torch: written to be read, slow, differentiable, float64-capable."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from psa_triton.blocks import Blocks
from psa_triton.kernels.reading import Reading

CORRECTED_LEVELS = (2, 4, 8)
"""Levels whose logits `pool_correction` reaches."""


def pyramid_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, levels: torch.Tensor, blocks: Blocks, reading: Reading
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of `q` over the groups that `levels` chooses.

    Args:
        q: `[B, Hq, Nq, D]`.
        k, v: `[B, Hkv, Nk, D]`; query head `h` reads key head `h // (Hq // Hkv)`.
        levels: int8 `[B, Hq, nq, nk]`.
        blocks: of queries and keys. Under a causal mask a query sees a group only if it may see the group's last kept
            token (bottom-right aligned). With a key mask a group is the mean of its kept tokens, and one without any
            is not there.
        reading: with `isotropic` `scale ** 2 / 2 * |q| ** 2 * spread` is added to the logits of levels 2, 4 and 8;
            with `int8` queries and groups' keys are rounded.

    Returns:
        The output, shape and dtype of `q`, and the log-sum-exp `[B, Hq, Nq]`, float32 (float64 for float64 input).
    """
    heads, queries, tokens = q.shape[1], q.shape[2], k.shape[2]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q_wide = q.to(wide)
    q_wide = in_8_bits(q_wide) if reading.qk_dtype == "int8" else q_wide
    keep = blocks.key_mask
    if keep is None:
        keep = torch.ones(len(k), tokens, dtype=torch.bool, device=k.device)
    # Zeros in place of keys that are left out: they add nothing to a sum, and get no gradient.
    k_wide, v_wide = (
        x.to(wide).masked_fill(~keep[:, None, :, None], 0.0).repeat_interleave(heads // max(1, k.shape[1]), dim=1)
        for x in (k, v)
    )

    # To begin with, no groups: enough where there is nothing to read.
    logits, values = [q_wide @ k_wide[:, :, :0].mT], [v_wide[:, :, :0]]
    visible = [levels.new_zeros((*q.shape[:3], 0), dtype=torch.bool)]
    for level in (1 << step for step in range(reading.coarsest.bit_length() if tokens else 0)):
        key_mean, count, last = pool(k_wide, keep, level)
        value_mean, _, _ = pool(v_wide, keep, level)
        key_mean = in_8_bits(key_mean) if reading.qk_dtype == "int8" else key_mean
        chosen = levels.repeat_interleave(blocks.m, dim=2)[:, :, :queries] == level
        # Groups never straddle blocks: blocks.n is a multiple of the level.
        sees = chosen.repeat_interleave(blocks.n // level, dim=3)[..., : count.shape[1]]
        sees = sees & (count > 0)[:, None, None]
        if blocks.is_causal:
            position = torch.arange(queries, device=q.device) + blocks.shift
            sees = sees & (last[:, None, None] <= position[:, None])
        logit = reading.scale * q_wide @ key_mean.mT + count.clamp(min=1).to(wide).log()[:, None, None]
        if reading.pool_correction == "isotropic" and level in CORRECTED_LEVELS:
            square = q_wide.square().sum(-1, keepdim=True)
            logit = logit + reading.scale**2 / 2 * square * spread(k_wide, keep, level)[..., None, :]
        logits.append(logit)
        values.append(value_mean)
        visible.append(sees)

    seen = torch.cat(visible, dim=-1)
    masked = torch.cat(logits, dim=-1).masked_fill(~seen, float("-inf"))
    lse = masked.logsumexp(-1)
    # A row that sees nothing has lse = -inf: its weights are zero, not exp(-inf + inf).
    weights = (masked - lse.masked_fill(lse == float("-inf"), 0.0)[..., None]).exp()
    return attend(weights, seen, torch.cat(values, dim=-2)).to(q.dtype), lse


def pool(x: torch.Tensor, keep: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means of groups of `level` neighbours, with each group's count of kept tokens and the last of them.

    Args:
        x: `[B, H, N, D]`, zeros where a token is left out.
        keep: bool `[B, N]`, which tokens are there.
        level: tokens of a group; the last group may be short.

    Returns:
        `[B, H, G, D]`, `[B, G]` and `[B, G]`; the last of no tokens is -1.
    """
    kept = groups(keep[..., None], level)[..., 0]
    position = groups(torch.arange(x.shape[-2], device=x.device)[:, None], level)[..., 0]
    count, last = kept.sum(dim=-1), position.masked_fill(~kept, -1).amax(dim=-1)
    return groups(x, level).sum(dim=-2) / count.clamp(min=1)[:, None, :, None], count, last


def spread(x: torch.Tensor, keep: torch.Tensor, level: int) -> torch.Tensor:
    """Variance within groups of `level` neighbours, averaged over the dimensions: `[B, H, G]`; arguments of `pool`."""
    mean, count, _ = pool(x, keep, level)
    apart = (groups(x, level) - mean[..., None, :]).square().mean(dim=-1)
    return (apart * groups(keep[..., None], level)[:, None, ..., 0]).sum(dim=-1) / count.clamp(min=1)[:, None]


def groups(x: torch.Tensor, level: int) -> torch.Tensor:
    """Tokens `[..., N, D]` in groups of `level` neighbours, `[..., G, level, D]`, the last filled up with zeros."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % level)).unflatten(-2, (-1, level))


def in_8_bits(x: torch.Tensor) -> torch.Tensor:
    """Each row (last dimension) rounded to multiples of its largest number / 127; nan if it is not finite."""
    step = x.abs().amax(dim=-1, keepdim=True) / 127
    return torch.where(step == 0, 0.0, (x / step).round() * step)


def attend(weights: torch.Tensor, seen: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`weights @ values`, where a value that is not finite spoils only the rows that see it (0 * nan is nan)."""
    bad = ~values.isfinite().all(dim=-1)
    out = weights @ values.masked_fill(bad[..., None], 0.0)
    spoiled = (seen & bad[..., None, :]).any(dim=-1)
    return out.masked_fill(spoiled[..., None], float("nan"))
