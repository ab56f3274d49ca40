"""PSA in `CogVideoXTransformer3DModel`: its joint attention, and where its tokens are permuted and restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from torch.utils.hooks import RemovableHandle

from psa_triton.integrations.diffusers.arguments import Call, argument, with_argument
from psa_triton.integrations.diffusers.processor import PSAProcessor, project_out, project_qkv
from psa_triton.integrations.diffusers.state import ForwardState

Rotary = tuple[torch.Tensor, torch.Tensor]
Joint = tuple[torch.Tensor, torch.Tensor]


class CogVideoXPSAProcessor(PSAProcessor):
    """Joint attention of a CogVideoX block (`attn1`) over text tokens, then visual tokens."""

    @torch.compiler.disable
    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Joint:
        """Attend as diffusers' `CogVideoXAttnProcessor2_0` does.

        Args:
            attn: the attention layer.
            hidden_states: visual tokens `[B, N, C]`.
            encoder_hidden_states: text tokens `[B, T, C]`.
            attention_mask: a mask; the call runs dense then.
            image_rotary_emb: rotary tables of the visual tokens, `[N, D]` each.

        Returns:
            The attended visual and text tokens.
        """
        text = encoder_hidden_states.shape[1]
        visual, device = hidden_states.shape[1], hidden_states.device
        with self._state.call(self._layer, visual, text, attention_mask, device) as call:
            if call.config is None and self._state.parallel is None:
                return self.dense(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
            projected = project_qkv(attn, torch.cat([encoder_hidden_states, hidden_states], dim=1))
            query, key, value = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in projected)
            query = _rotate(query if attn.norm_q is None else attn.norm_q(query), image_rotary_emb, text)
            key = _rotate(key if attn.norm_k is None else attn.norm_k(key), image_rotary_emb, text)
            out = project_out(attn, self._state.attend(call, query, key, value, prefix_tokens=text))
            return out[:, text:], out[:, :text]


def attentions(transformer: CogVideoXTransformer3DModel) -> list[Attention]:
    """The attention layers to make sparse, first block to last."""
    return [block.attn1 for block in transformer.transformer_blocks]


@dataclass(frozen=True)
class _Hooks:
    """What permutes the visual tokens of a forward, and their rotary tables, before the first block; restores last."""

    state: ForwardState

    @torch.compiler.disable
    def begin(self, module: CogVideoXTransformer3DModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        latent = argument(args, kwargs, 0, "hidden_states")
        _, frames, _, height, width = latent.shape
        patch, patch_t = module.config.patch_size, module.config.patch_size_t or 1
        attention_kwargs = argument(args, kwargs, 6, "attention_kwargs") or {}
        self.state.begin(
            module,
            argument(args, kwargs, 2, "timestep"),
            (frames // patch_t, height // patch, width // patch),
            latent.device,
            prefix_tokens=argument(args, kwargs, 1, "encoder_hidden_states").shape[1],
            masked=attention_kwargs.get("attention_mask") is not None,
        )
        rotary = argument(args, kwargs, 5, "image_rotary_emb")
        if rotary is None:
            return args, kwargs
        return with_argument(args, kwargs, 5, "image_rotary_emb", tuple(self.state.permute(x, dim=0) for x in rotary))

    def permute_tokens(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        tokens = argument(args, kwargs, 0, "hidden_states")
        return with_argument(args, kwargs, 0, "hidden_states", self.state.permute(tokens, dim=1))

    def restore_tokens(self, module: torch.nn.Module, args: tuple[Any, ...], output: Joint) -> Joint:
        visual, text = output
        return self.state.restore(visual, dim=1), text


def register_hooks(transformer: CogVideoXTransformer3DModel, state: ForwardState) -> list[RemovableHandle]:
    """Follow each forward, permuting its rotary tables, and the visual tokens before the first block; restore last."""
    hooks = _Hooks(state)
    return [
        transformer.register_forward_pre_hook(hooks.begin, with_kwargs=True),
        transformer.transformer_blocks[0].register_forward_pre_hook(hooks.permute_tokens, with_kwargs=True),
        transformer.transformer_blocks[-1].register_forward_hook(hooks.restore_tokens),
    ]


def context_parallel_plan() -> dict[str, Any]:
    """How to split tokens between processes, as the `cp_plan` of `CogVideoXTransformer3DModel.enable_parallelism`.

    diffusers has no plan of its own for this class, and its attention processors would attend within each share: a
    transformer with this plan is right while PSA is attached, be it with a dense preset, and not without.
    """
    # Public by their use as `cp_plan`, but exported nowhere else; and older releases of diffusers do not have them.
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    tables = ContextParallelInput(split_dim=0, expected_dims=2)
    return {
        "": {"image_rotary_emb": [tables, tables]},
        "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }


def _rotate(x: torch.Tensor, rotary: Rotary | None, text: int) -> torch.Tensor:
    """Rotary embedding of all but the first `text` tokens of `x [B, H, N, D]`."""
    if rotary is None:
        return x
    return torch.cat([x[:, :, :text], apply_rotary_emb(x[:, :, text:], rotary)], dim=2)
