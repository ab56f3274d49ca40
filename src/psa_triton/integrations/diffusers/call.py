"""One call of an attention layer: how it attends, and what is noted of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from psa_triton.config import PSAConfig, Way
from psa_triton.integrations.attend import attend_in_order, tally
from psa_triton.integrations.diffusers.families import Grid
from psa_triton.integrations.diffusers.layout import Layout, Unfit, exempt_tokens, find_layout, visual_order
from psa_triton.integrations.diffusers.parallel import Stream
from psa_triton.integrations.diffusers.stats import CallKey, LevelRecord

if TYPE_CHECKING:
    from psa_triton.integrations.diffusers.forward import Forward, ForwardState

logger = logging.getLogger("psa_triton")

NO_CALL: Final = "no call of scaled_dot_product_attention"
"""Why a layer ran dense whose processor did not attend in a way that PSA can answer."""


@dataclass
class Answer:
    """How one call of `scaled_dot_product_attention` was answered."""

    tokens: int
    reason: str | None
    """Why it ran dense; None if it did not."""
    way: Way | None = None
    density: Tensor | float = 1.0
    overhead: float = 0.0
    """Estimate of importance and probe, as a share of dense attention."""
    error: tuple[Tensor, Tensor] | None = None
    """Measured, and the standard error of that."""
    levels: LevelRecord | None = None


class LayerCall:
    """One call of one attention layer, in which `scaled_dot_product_attention` may be called several times.

    Args:
        state: of the transformer.
        forward: under way.
        layer: index.
        config: of the layer in this step; None runs dense.
        reason: why the whole call runs dense; None if it does not.
    """

    def __init__(
        self, state: ForwardState, forward: Forward, layer: int, config: PSAConfig | None, reason: str | None
    ) -> None:
        self._state = state
        self._forward = forward
        self._layer = layer
        self._config = config
        self._reason = reason
        self._answers: list[Answer] = []

    @property
    def is_dense(self) -> bool:
        """Whether the model's own attention is to run as it would without PSA."""
        return self._reason is not None and self._forward.parallel is None

    def run_dense(self, reason: str) -> None:
        """Run as the model would without PSA, if nothing else said so before."""
        self._reason = self._reason or reason

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """What `scaled_dot_product_attention` of these arguments is to give: `[B, H, Nq, D]`.

        Where tokens are shared between processes, they are exchanged for heads before and back after.

        Raises:
            ValueError: if a mask of more than keys comes to shared tokens.
        """
        forward = self._forward
        options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        if forward.parallel is None:
            return self._attend(query, key, value, attn_mask, options)
        streams = [Stream(forward.visual_tokens, shared=True)]
        if others := query.shape[2] - forward.parallel.length(forward.visual_tokens):
            split = Stream(forward.others, shared=others != forward.others)
            streams = [split, *streams] if forward.visual == "last" else [*streams, split]
        whole = forward.parallel.to_heads(torch.stack([query, key, value]), streams)
        if attn_mask is not None:
            attn_mask = forward.parallel.to_whole_mask(attn_mask, streams)
        out = self._attend(whole[0], whole[1], whole[2], attn_mask, options)
        return forward.parallel.to_tokens(out, query.shape[1], streams)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        try:
            if self._reason is not None:
                raise Unfit(self._reason)
            return self._attend_sparse(query, key, value, attn_mask, options)
        except Unfit as reason:
            self._answers.append(Answer(max(query.shape[2], key.shape[2]), str(reason)))
            return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)

    def _attend_sparse(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        forward, state, config = self._forward, self._state, self._config
        assert config is not None  # else there is a reason to run dense
        tokens, queries = key.shape[2], query.shape[2]
        grids = self._grids(tokens)
        count = sum(prod(grid) for grid in grids)
        if options["is_causal"]:
            raise Unfit("causal")
        if options["dropout_p"]:
            raise Unfit("dropout")
        if tokens < count:
            raise Unfit("other tokens")
        if queries != tokens and not (state.family.more_keys and queries == count and attn_mask is None):
            raise Unfit("other keys than queries")
        layout = self._layout(grids, query, key, attn_mask)
        q = query if layout.queries is None else layout.queries.apply(query)
        k, v = (x if layout.keys is None else layout.keys.apply(x) for x in (key, value))
        attended = attend_in_order(
            q,
            k,
            v,
            config,
            layer=self._layer,
            step=forward.step,
            exempt_queries=exempt_tokens(grids, state.family.exempt_queries, queries - count),
            exempt_keys=exempt_tokens(grids, state.family.exempt_keys, tokens - count),
            grid=grids[0] if len(grids) == 1 else None,
            key_mask=layout.key_mask,
            scale=options["scale"],
            impl=state.rules.impl,
            reuse=forward.reuse,
            nth=len(self._answers),
        )
        if layout.keys is not None:
            state.recorder.count("gathers", 4)
        counted = tally(attended, config, tokens, layout.key_mask)
        record = None
        if state.on_levels is not None and attended.levels is not None and counted.densities is not None:
            record = LevelRecord(
                transformer=state.name,
                layer=self._layer,
                step=forward.step,
                config=config,
                levels=attended.levels,
                densities=counted.densities,
                grid=grids[0] if len(grids) == 1 else (1, 1, count),
                prefix_tokens=layout.others,
                order=visual_order(grids, config),
                qkv=(q, k, v),
            )
        self._answers.append(
            Answer(tokens, None, attended.way, counted.density, counted.overhead, counted.error, record)
        )
        return attended.out if layout.queries is None else layout.queries.restore(attended.out)

    def _grids(self, tokens: int) -> tuple[Grid, ...]:
        grids = self._forward.grids
        copies = tokens // max(self._forward.visual_tokens, 1) if self._state.family.copies else 1
        return grids * max(copies, 1)

    def _layout(self, grids: tuple[Grid, ...], query: Tensor, key: Tensor, attn_mask: Tensor | None) -> Layout:
        """The layout of the call, found once a forward.

        Raises:
            Unfit: there is none.
        """
        assert self._config is not None  # as of every sparse call
        place = None if attn_mask is None else (attn_mask.data_ptr(), attn_mask.shape, attn_mask.stride())
        known = self._forward.layouts.get((place, key.shape[2], len(grids)))
        if known is None:
            try:
                found: Layout | Unfit = find_layout(grids, self._forward.visual, self._config, query, key, attn_mask)
            except Unfit as reason:
                found = reason
            # The mask is kept, so that no other can come to stand in its place.
            known = self._forward.layouts[place, key.shape[2], len(grids)] = found, attn_mask
        if isinstance(known[0], Unfit):
            raise known[0]
        return known[0]

    def record(self, seconds: float) -> None:
        """Note how the call went, and tell of what was read."""
        forward, state, config = self._forward, self._state, self._config
        if not self._answers:
            reason = self._reason or NO_CALL
            self._answers.append(Answer(max(1, forward.visual_tokens + forward.others), reason))
        seconds /= len(self._answers)
        for answer in self._answers:
            key = CallKey(state.name, self._layer, forward.step, answer.tokens, answer.reason, answer.way)
            state.recorder.add(key, answer.tokens**2, answer.density, seconds, answer.overhead, answer.error)
            if answer.reason is None and config is not None and config.verbose:
                logger.info(
                    "%s layer %d step %s: %d tokens, density %.3f, %.4f s",
                    *(state.name, self._layer, forward.step, answer.tokens, float(answer.density), seconds),
                )
            if state.on_levels is not None and answer.levels is not None:
                state.on_levels(answer.levels)
