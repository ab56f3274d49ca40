"""PSA as the attention backend of another program: what runs dense there, how the rest attends, what is told of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from psa_triton.config import DEFAULT_PROBE, Way
from psa_triton.exempt import as_prefix
from psa_triton.inputs import DTYPES
from psa_triton.integrations.attend import Grid, Layout, attend_in_order
from psa_triton.integrations.reuse import StepReuse
from psa_triton.integrations.rules import DenseRules
from psa_triton.integrations.stats import Recorder, Tally, Total
from psa_triton.ordering import grid_method, grid_order

logger = logging.getLogger("psa_triton")


class ShapeKey(NamedTuple):
    """What tells the calls of one line of the log from those of another."""

    queries: int
    keys: int
    heads: int
    head_size: int
    reason: str | None
    way: Way | None

    def __str__(self) -> str:
        tokens = f"{self.queries} tokens" if self.queries == self.keys else f"{self.queries} queries, {self.keys} keys"
        return f"{tokens}, {self.heads} heads of {self.head_size}"


class HostAttention:
    """Attention over visual tokens that a program hands to PSA call by call.

    Whether a call is sparse follows from its shapes and from what the program says of it: nothing waits for the device.
    `tell` does, and belongs between two forwards.

    Args:
        rules: the attention, and what runs dense.
        verbose: tell of every forward, and measure the error in all of them; otherwise of each shape once.
    """

    def __init__(self, rules: DenseRules, *, verbose: bool = False) -> None:
        self.rules = rules
        self._verbose = verbose
        self._told: set[ShapeKey] = set()
        self._recorder: Recorder[Mapping[ShapeKey, Total]] = Recorder(lambda counted: counted.totals, False)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        layer: int = 0,
        grid: Grid | None = None,
        prefix_tokens: int = 0,
        reason: str | None = None,
        step: int | None = None,
        progress: float = 0.0,
        scale: float | None = None,
        reuse: StepReuse | None = None,
        nth: int = 0,
    ) -> Tensor | None:
        """Attention of one call, if it is to be sparse.

        Args:
            q, k, v: `[B, H, N, D]`, any strides.
            layer: index.
            grid: of the visual tokens, which follow the prefix in raster order; None where the program tells none.
            prefix_tokens: that are not visual.
            reason: why the call runs dense; None if nothing is known against it.
            step: of the denoising.
            progress: share of the denoising that is done.
            scale: of the logits.
            reuse: what layers kept from earlier steps.
            nth: which of the layer's calls in this forward.

        Returns:
            `[B, H, N, D]`, or None: the program's own attention is to run.
        """
        queries, keys = q.shape[2], k.shape[2]
        reason = _unfit(q, k, grid, prefix_tokens) or reason
        config = self.rules.config
        if reason is None and config is not None:
            config = config.at(layer, progress)
            reason = self.rules.of_layer(layer, config)
            reason = reason or self.rules.of_length(keys, config, q.device, q.dtype, prefix_tokens)
        if reason is not None or config is None or grid is None:
            key = ShapeKey(queries, keys, q.shape[1], q.shape[3], reason or "dense preset", None)
            self._recorder.add(key, queries * keys, Tally())
            return None
        order = None
        if (method := grid_method(config)) is not None:
            tile = config.tile_size
            order = grid_order(method, grid, tile_size=tile, prefix_tokens=prefix_tokens, device=q.device)
        key = ShapeKey(queries, keys, q.shape[1], q.shape[3], None, "sparse")
        prefix = as_prefix(prefix_tokens)
        answer = attend_in_order(
            q,
            k,
            v,
            config,
            Layout(grid=grid, queries=order, keys=order, exempt_queries=prefix, exempt_keys=prefix),
            layer=layer,
            step=step,
            scale=scale,
            impl=self.rules.impl,
            reuse=reuse,
            nth=nth,
            probe=config.probe or (0.0 if key in self._told and not self._verbose else DEFAULT_PROBE),
        )
        self._recorder.add(key._replace(way=answer.way), queries * keys, answer.tally)
        return answer.out

    def tell(self) -> None:
        """Log what the calls since last time did, each shape once; waits for the device if there is something new."""
        totals = self._recorder.stats()
        self._recorder.reset()
        for key, total in totals.items():
            if self._verbose or key not in self._told:
                self._told.add(key)
                logger.info("PSA: %s: %s", key, _outcome(key, total))


def _unfit(q: Tensor, k: Tensor, grid: Grid | None, prefix_tokens: int) -> str | None:
    """Why the operator cannot answer a call; None if it can."""
    if q.shape[2] != k.shape[2]:
        return "cross-attention"
    if grid is None:
        return "no grid known"
    if prefix_tokens < 0 or q.shape[2] != prefix_tokens + grid[0] * grid[1] * grid[2]:
        return "other tokens than those of the video"
    if q.dtype not in DTYPES:
        return f"{str(q.dtype).removeprefix('torch.')}"
    return f"head dimension of {q.shape[3]}, no multiple of 8" if q.shape[3] % 8 else None


def _outcome(key: ShapeKey, total: Total) -> str:
    if key.reason is not None:
        return f"{total.calls} calls dense: {key.reason}"
    words = f"{total.calls} calls {key.way}, density {float(total.density) / total.work:.3f}"
    if total.mean_error is not None:
        words += f", measured error {total.mean_error:.3f} ± {total.standard_error:.3f}"
    return words
