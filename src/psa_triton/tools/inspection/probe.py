"""Attention calls of a generation, taken out of it as inputs to look at."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod
from typing import Final

from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import LevelRecord
from psa_triton.ordering import TokenOrder
from psa_triton.tools.evaluation.levels_record import CallSite
from psa_triton.tools.inspection.inputs import AttentionInputs

READ_ALL: Final = PSAConfig(block_n=128, mask_ratios={1: (0.0, 1.0)}, importance="pooled", use_rearrange=False)
"""Dense attention, in a form that tells of its calls; tokens stay in their own order."""

OnCall = Callable[[CallSite, AttentionInputs, Tensor], None]
"""Told where a call stands, what it attended with, and the levels that it read, int8 `[1, H, nq, nk]`."""


class Probe:
    """An `on_levels` of `apply_psa` that hands on chosen calls as soon as they are done.

    Of a step's calls it takes the first one's last batch entry: with guidance, in diffusers' pipelines, that is the
    forward for the prompt.

    Args:
        layers: of the transformer's attention layers.
        steps: denoising steps.
        on_call: told of each.
    """

    def __init__(self, layers: Collection[int], steps: Collection[int], on_call: OnCall) -> None:
        self._layers = layers
        self._steps = steps
        self._on_call = on_call
        self._found: set[CallSite] = set()

    def __call__(self, record: LevelRecord) -> None:
        """Hand on the call if it is wanted."""
        if record.layer not in self._layers or record.step not in self._steps:
            return
        site = CallSite(record.transformer, record.layer, record.step or 0)
        if site in self._found:
            return
        self._found.add(site)
        assert record.qkv is not None  # as of every record that apply_psa tells of
        q, k, v = (x[-1:] for x in record.qkv)
        visual = prod(record.grid)
        if record.order is not None:
            order = TokenOrder(record.order.permutation.to(q.device), record.order.inverse.to(q.device))
            q, k, v = (order.with_prefix(x.shape[2] - visual).restore(x) for x in (q, k, v))
        inputs = AttentionInputs(q=q, k=k, v=v, grid=record.grid, prefix_tokens=q.shape[2] - visual)
        self._on_call(site, inputs, record.levels[-1:])
