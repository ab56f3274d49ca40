"""PSA in `WanTransformer3DModel`: its self-attention, and where its tokens are permuted and restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch.utils.hooks import RemovableHandle

from psa_triton.integrations.diffusers.arguments import Call, argument, with_argument
from psa_triton.integrations.diffusers.processor import PSAProcessor, project_out, project_qkv
from psa_triton.integrations.diffusers.state import ForwardState

Rotary = tuple[torch.Tensor, torch.Tensor]


class WanPSAProcessor(PSAProcessor):
    """Self-attention of a Wan block (`attn1`)."""

    @torch.compiler.disable
    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        """Attend as diffusers' `WanAttnProcessor` does; `hidden_states [B, N, C]`, rotary tables `[1, N, 1, D]`."""
        with self._state.call(self._layer, hidden_states.shape[1], 0, attention_mask, hidden_states.device) as call:
            if call.config is None:
                return self.dense(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            query, key, value = project_qkv(attn, hidden_states)
            query, key, value = (
                x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(query), attn.norm_k(key), value)
            )
            if rotary_emb is not None:
                query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            return project_out(attn, self._state.attend(call, query, key, value))


def attentions(transformer: WanTransformer3DModel) -> list[WanAttention]:
    """The attention layers to make sparse, first block to last."""
    return [block.attn1 for block in transformer.blocks]


@dataclass(frozen=True)
class _Hooks:
    """What permutes the tokens of a forward, and all that goes by tokens, on the way into the blocks; restores after.

    With one timestep per token (TI2V) its modulation of the blocks is a tensor per token too. The one of the output
    layer is not touched: that layer comes after the tokens are back in place.
    """

    state: ForwardState

    @torch.compiler.disable
    def begin(
        self, module: WanTransformer3DModel | WanVACETransformer3DModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        latent = argument(args, kwargs, 0, "hidden_states")
        *_, frames, height, width = latent.shape
        p_t, p_h, p_w = module.config.patch_size
        grid = (frames // p_t, height // p_h, width // p_w)
        self.state.begin(module, argument(args, kwargs, 1, "timestep"), grid, latent.device)

    @torch.compiler.disable
    def permute_rotary(self, module: torch.nn.Module, args: tuple[Any, ...], output: Rotary) -> Rotary:
        state = self.state
        if not state.reorders:
            return output
        # Where tokens are shared between processes, `output` is one share of the tables in the tokens' own order.
        cos, sin = output if state.parallel is None else type(module).forward(module, *args)
        return state.permute_share(cos, dim=1), state.permute_share(sin, dim=1)

    @torch.compiler.disable
    def permute_modulation(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        state = self.state
        out_modulation, block_modulation, *rest = output
        if not state.reorders or block_modulation.ndim != 3:
            return output
        if state.parallel is None:
            return out_modulation, state.permute(block_modulation, dim=1), *rest
        # `output` is of one share of the timesteps: of other tokens than those that this process gets of the new order.
        args, kwargs = with_argument(args, kwargs, 0, "timestep", state.token_timesteps().flatten())
        return out_modulation, type(module).forward(module, *args, **kwargs)[1], *rest

    def permute_tokens(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        tokens = argument(args, kwargs, 0, "hidden_states")
        return with_argument(args, kwargs, 0, "hidden_states", self.state.permute(tokens, dim=1))

    def permute_control(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        args, kwargs = self.permute_tokens(module, args, kwargs)
        control = argument(args, kwargs, 2, "control_hidden_states")
        return with_argument(args, kwargs, 2, "control_hidden_states", self.state.permute(control, dim=1))

    def restore_tokens(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return self.state.restore(output, dim=1)


def register_hooks(
    transformer: WanTransformer3DModel | WanVACETransformer3DModel, state: ForwardState
) -> list[RemovableHandle]:
    """Follow each forward, and permute what goes into the first block along the token axis; restore after the last."""
    hooks = _Hooks(state)
    return [
        transformer.register_forward_pre_hook(hooks.begin, with_kwargs=True),
        transformer.rope.register_forward_hook(hooks.permute_rotary),
        transformer.condition_embedder.register_forward_hook(hooks.permute_modulation, with_kwargs=True),
        transformer.blocks[0].register_forward_pre_hook(hooks.permute_tokens, with_kwargs=True),
        transformer.blocks[-1].register_forward_hook(hooks.restore_tokens),
    ]


def vace_attentions(transformer: WanVACETransformer3DModel) -> list[WanAttention]:
    """The layers to make sparse: of the main blocks, then of the control blocks."""
    return [block.attn1 for block in (*transformer.blocks, *transformer.vace_blocks)]


def register_vace_hooks(transformer: WanVACETransformer3DModel, state: ForwardState) -> list[RemovableHandle]:
    """`register_hooks`, and permute what goes into the first control block.

    Raises:
        ValueError: if a control block adds to the last main block's output, where tokens are restored.
    """
    if len(transformer.blocks) - 1 in transformer.config.vace_layers:
        raise ValueError(
            f"vace_layers: expected layers before the last of {len(transformer.blocks)} for PSA, "
            f"got {list(transformer.config.vace_layers)}"
        )

    return [
        *register_hooks(transformer, state),
        transformer.vace_blocks[0].register_forward_pre_hook(_Hooks(state).permute_control, with_kwargs=True),
    ]


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding in pairs of neighbouring channels; `x [B, N, H, D]`, tables `[1, N, 1, D]`, each value twice."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)
