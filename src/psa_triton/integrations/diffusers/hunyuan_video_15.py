"""HunyuanVideo-1.5's attention without its N x N mask, which diffusers makes in each call (2.6 GB at 49k tokens)."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F


class PaddedProcessor(HunyuanVideoAttnProcessor2_0):
    """The attention of HunyuanVideo, which is the same but for its mask: `[B, 1, 1, N]`, which text tokens are padding.

    diffusers' own leaves padding out as queries too. Nobody reads what those then hold.
    """

    # Of all layers: those of a forward get one tensor, and make one of it, so that PSA looks at it once.
    _last: ClassVar[tuple[Tensor, int, Tensor] | None] = None

    def __call__(self, attn: Any, hidden_states: Tensor, *, attention_mask: Tensor | None = None, **more: Any) -> Any:
        """Attend to visual tokens `[B, V, C]` and text `[B, T, C]`, of which `attention_mask [B, T]` tells padding."""
        if attention_mask is not None:
            attention_mask = self._padding(attention_mask, hidden_states.shape[1])
        return super().__call__(attn, hidden_states, attention_mask=attention_mask, **more)

    def _padding(self, of_text: Tensor, visual: int) -> Tensor:
        last = self._last
        if last is None or last[0] is not of_text or last[1] != visual:
            last = of_text, visual, F.pad(of_text.bool(), (visual, 0), value=True)[:, None, None]
            PaddedProcessor._last = last
        return last[2]
