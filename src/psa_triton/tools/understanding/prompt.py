"""A question about an image or a video -> what the model reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from psa_triton.tools.understanding.checkpoint import Checkpoint
from psa_triton.tools.understanding.media import Media
from psa_triton.tools.understanding.patches import Patches

_KIND_IDS = {"image": 1, "video": 2}  # transformers' mm_token_type_ids; text is 0


@dataclass(frozen=True)
class Prompt:
    """What the model reads.

    Attributes:
        inputs: keyword arguments of the model; `input_ids` is `[1, tokens]`.
        tokens: visual and text.
        visual_tokens: those that stand for the image or the video.
        grid: patches of the image or video: time, height, width.
    """

    inputs: dict[str, torch.Tensor]
    tokens: int
    visual_tokens: int
    grid: tuple[int, int, int]


def make_prompt(checkpoint: Checkpoint, media: Media, question: str, *, max_tokens: int) -> Prompt:
    """One turn of a conversation: the image or video, then the question.

    Args:
        checkpoint: the model that is to be asked.
        media: what the question is about.
        question: in the user's words.
        max_tokens: room that the answer needs in the model's context.

    Raises:
        ValueError: the question is blank, or holds the model's own sign for an image or a video; the model's chat
            template has no place for one; or question and answer are longer than the model's context.
    """
    if not question.strip():
        raise ValueError("prompt: expected a question, got a blank text")
    patches = checkpoint.patcher.cut(media)
    ids = _token_ids(checkpoint, media, question, patches.tokens)
    count = ids.shape[1]
    if count + max_tokens > checkpoint.context:
        raise ValueError(
            f"prompt: {count} tokens ({patches.tokens} of them visual) and an answer of up to {max_tokens} do not fit "
            f"into the model's context of {checkpoint.context}; ask for fewer frames, pixels or answer tokens"
        )
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == _sign_id(checkpoint, media)).int() * _KIND_IDS[media.kind],
        **_visual_inputs(checkpoint, media, patches),
    }
    return Prompt(inputs, count, patches.tokens, patches.grid)


def _token_ids(checkpoint: Checkpoint, media: Media, question: str, visual_tokens: int) -> torch.Tensor:
    """The conversation as the model's chat template writes it, with the sign of the image or video repeated."""
    tokenizer = checkpoint.tokenizer
    sign = tokenizer.convert_ids_to_tokens(_sign_id(checkpoint, media))
    content = [{"type": media.kind}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    if (found := text.count(sign)) != 1:
        raise ValueError(
            f"prompt: expected one {sign} in the conversation, got {found}: a question may not hold it, and the "
            f"model's chat template has to put it where the {media.kind} belongs"
        )
    text = text.replace(sign, sign * visual_tokens)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]


def _sign_id(checkpoint: Checkpoint, media: Media) -> int:
    return getattr(checkpoint.config, f"{media.kind}_token_id")


def _visual_inputs(checkpoint: Checkpoint, media: Media, patches: Patches) -> dict[str, torch.Tensor]:
    grid = torch.tensor([patches.grid])
    if media.kind == "image":
        return {"pixel_values": patches.values, "image_grid_thw": grid}
    inputs = {"pixel_values_videos": patches.values, "video_grid_thw": grid}
    if hasattr(checkpoint.config.vision_config, "tokens_per_second"):
        # Qwen2.5-VL's rotary positions follow the clock; Qwen2-VL's count frames.
        inputs["second_per_grid_ts"] = torch.tensor([checkpoint.patcher.temporal_patch / media.fps])
    return inputs
