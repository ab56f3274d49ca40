"""One call of an attention layer: how it attends, and what is noted of it."""

from __future__ import annotations

import logging
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from psa_triton.integrations.attend import Answer, Layout, attend_in_order
from psa_triton.integrations.diffusers.forward import ForwardState
from psa_triton.integrations.diffusers.layout import find_layout, visual_tokens
from psa_triton.integrations.diffusers.parallel import Stream
from psa_triton.integrations.diffusers.stats import CallKey, LevelRecord
from psa_triton.integrations.stats import Tally
from psa_triton.ordering import TokenOrder

logger = logging.getLogger("psa_triton")

NO_CALL: Final = "no call of scaled_dot_product_attention"
"""Why a layer ran dense whose processor did not attend in a way that PSA can answer."""


class LayerCall(TorchFunctionMode):
    """One call of one attention layer: a context in which PSA answers each `scaled_dot_product_attention`.

    Args:
        state: of the transformer.
        layer: index.
        reason: why the whole call runs dense, if nothing else says so; None if it does not.
    """

    def __init__(self, state: ForwardState, layer: int, reason: str | None = None) -> None:
        super().__init__()
        rules, self._forward = state.rules, state.now
        self._state = state
        self._layer = layer
        self._config = None if rules.config is None else rules.config.at(layer, self._forward.progress)
        self._reason = self._forward.dense_reason or rules.of_layer(layer, self._config) or reason
        self._answers: list[tuple[CallKey, Tally, LevelRecord | None]] = []

    @property
    def is_dense(self) -> bool:
        """Whether the model's own attention is to run as it would without PSA."""
        return self._reason is not None and self._forward.parallel is None

    def __enter__(self) -> Any:
        self._started = self._state.recorder.clock(self._forward.device)
        return super().__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            self._record(self._state.recorder.clock(self._forward.device) - self._started)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # In here the mode is off: calls go to torch.
        return (self._answer if func is scaled_dot_product_attention else func)(*args, **(kwargs or {}))

    def _answer(
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
        visual = visual_tokens(forward.grids)
        streams = [Stream(visual, shared=True)]
        if others := query.shape[2] - forward.parallel.length(visual):
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
        forward, state, config = self._forward, self._state, self._config
        reason = self._reason or ("causal" if options["is_causal"] else "dropout" if options["dropout_p"] else None)
        layout = reason or self._layout(query, key, attn_mask)
        if config is None or isinstance(layout, str):
            self._note(max(query.shape[2], key.shape[2]), str(layout))
            return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)
        answer = attend_in_order(
            query,
            key,
            value,
            config,
            layout,
            layer=self._layer,
            step=forward.step,
            scale=options["scale"],
            impl=state.rules.impl,
            reuse=forward.reuse,
            nth=len(self._answers),
        )
        tokens = key.shape[2]
        if layout.keys is not None:
            state.recorder.count("gathers", 4)
        record = None
        if state.on_levels is not None and answer.levels is not None and answer.densities is not None:
            record = LevelRecord(
                transformer=state.name,
                layer=self._layer,
                step=forward.step,
                config=config,
                levels=answer.levels,
                densities=answer.densities,
                grid=layout.grid or (1, 1, tokens - layout.others),
                prefix_tokens=layout.others,
                order=None if layout.curve is None else TokenOrder.from_permutation(layout.curve.cpu()),
                qkv=answer.qkv,
            )
        self._note(tokens, None, answer, record)
        return answer.out

    def _layout(self, query: Tensor, key: Tensor, attn_mask: Tensor | None) -> Layout | str:
        """The layout of the call, or why there is none; found once a forward, on each device that has layers."""
        forward, config = self._forward, self._config
        assert config is not None  # else there is a reason to run dense
        mask = None if attn_mask is None else (attn_mask.data_ptr(), attn_mask.shape, attn_mask.stride())
        place = query.shape[2], key.shape[2], key.device, mask
        if place not in forward.layouts:
            found = find_layout(self._state.family, forward.grids, forward.visual, config, query, key, attn_mask)
            # The mask is kept, so that no other can come to stand in its place.
            forward.layouts[place] = found, attn_mask
        return forward.layouts[place][0]

    def _note(
        self, tokens: int, reason: str | None, answer: Answer | None = None, levels: LevelRecord | None = None
    ) -> None:
        way, tally = (None, Tally()) if answer is None else (answer.way, answer.tally)
        key = CallKey(self._state.name, self._layer, self._forward.step, tokens, reason is None, way, reason)
        self._answers.append((key, tally, levels))

    def _record(self, seconds: float) -> None:
        """Note how the call went, and tell of what was read."""
        forward, state, config = self._forward, self._state, self._config
        if not self._answers:
            self._note(max(1, visual_tokens(forward.grids) + forward.others), self._reason or NO_CALL)
        seconds /= len(self._answers)
        for key, tally, levels in self._answers:
            state.recorder.add(key, key.tokens**2, tally, seconds)
            if key.sparse and config is not None and config.verbose:
                logger.info(
                    "%s layer %d step %s: %d tokens, density %.3f, %.4f s",
                    *(state.name, self._layer, forward.step, key.tokens, float(tally.density), seconds),
                )
            if state.on_levels is not None and levels is not None:
                state.on_levels(levels)
