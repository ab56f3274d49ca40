"""Small language models of transformers' own classes with random weights, made offline, and inputs for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import Cache, PreTrainedModel

Inputs = dict[str, Any]

VOCABULARY = 96
IMAGE, VIDEO, START, END = 90, 91, 92, 93
"""Tokens that stand for an image's or video's features, and those around them."""

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": 0,
    "eos_token_id": VOCABULARY - 1,
    "pad_token_id": VOCABULARY - 1,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
VISION = "ForConditionalGeneration"
_TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
_QWEN_VISION = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "depth": 2, "patch_size": 4}


def _model(name: str, head: str = "ForCausalLM", **config: Any) -> PreTrainedModel:
    """A model of a family by name."""
    return getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**config))


def make_model(make: Callable[[], PreTrainedModel], seed: int = 0) -> PreTrainedModel:
    """A model whose attention is far from even: its query projections are enlarged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "embed_tokens.weight", "lm_head.weight")):
                parameter.mul_(10.0)
    return model


def llama(**changes: Any) -> PreTrainedModel:
    return _model("Llama", **_TEXT | changes)


def qwen2(**changes: Any) -> PreTrainedModel:
    return _model("Qwen2", **_without_head_dim() | changes)


def qwen3(**changes: Any) -> PreTrainedModel:
    return _model("Qwen3", **_TEXT | changes)


def mistral(**changes: Any) -> PreTrainedModel:
    """Every layer has a window of 64 tokens."""
    return _model("Mistral", **_TEXT | {"sliding_window": 64} | changes)


def gemma2(**changes: Any) -> PreTrainedModel:
    """The first layer has a window, and both a softcap, which some releases of transformers leave out under SDPA."""
    small = {"sliding_window": 64, "attn_implementation": "eager"}
    return _model("Gemma2", **_TEXT | small | changes)


def gpt_oss(**changes: Any) -> PreTrainedModel:
    """The first layer has a window, and both have attention sinks."""
    small = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 64}
    return _model("GptOss", **_TEXT | small | changes)


def bigbird_pegasus() -> PreTrainedModel:
    """It has no SDPA, and its layers say that they are not causal: its masks do so."""
    small = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "d_model": 64}
    return _model("BigBirdPegasus", vocab_size=VOCABULARY, is_decoder=True, is_encoder_decoder=False, **small)


def qwen2_5_vl() -> PreTrainedModel:
    vision = _QWEN_VISION | {"out_hidden_size": 64, "window_size": 16, "fullatt_block_indexes": [1]}
    return _model("Qwen2_5_VL", VISION, text_config=_without_head_dim() | _MROPE, vision_config=vision, **_TOKENS)


def qwen2_vl() -> PreTrainedModel:
    vision = {"embed_dim": 32, "hidden_size": 64, "num_heads": 2, "depth": 2, "patch_size": 4, "mlp_ratio": 1}
    return _model("Qwen2VL", VISION, text_config=_without_head_dim() | _MROPE, vision_config=vision, **_TOKENS)


def qwen3_vl() -> PreTrainedModel:
    vision = _QWEN_VISION | {"out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return _model("Qwen3VL", VISION, text_config=_TEXT | _MROPE, vision_config=vision, **_TOKENS)


def internvl() -> PreTrainedModel:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    return _model(
        "InternVL",
        VISION,
        text_config={"model_type": "qwen2", **_without_head_dim()},
        vision_config=vision | {"image_size": [32, 32], "patch_size": [4, 4]},
        image_token_id=IMAGE,
    )


def llava_onevision() -> PreTrainedModel:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    return _model(
        "LlavaOnevision",
        VISION,
        text_config={"model_type": "qwen2", **_without_head_dim()},
        vision_config={"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 4, **vision},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )


def paligemma() -> PreTrainedModel:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    return _model(
        "PaliGemma",
        VISION,
        text_config={"model_type": "gemma", **_TEXT},
        vision_config={"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 4, **vision},
        image_token_id=IMAGE,
        projection_dim=64,
    )


def text_inputs(tokens: int = 300, batch: int = 1, seed: int = 1) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(1, 90, (batch, tokens), generator=generator)}


@torch.no_grad()
def logits(model: PreTrainedModel, inputs: Inputs | None = None, **options: Any) -> torch.Tensor:
    return model(**(text_inputs() if inputs is None else inputs), **options).logits


def on_cache(model: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """The argument of the model's `forward` that hands over a cache; transformers 5.24 calls it anew."""
    return {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}


def qwen_video_inputs() -> Inputs:
    """10 text tokens, a video of 4x8x8 = 256 tokens, and 34 text tokens."""
    grid = (4, 16, 16)
    pixels = _random(4 * 16 * 16, 3 * 2 * 4 * 4)
    ids = _around([START, *[VIDEO] * 256, END])
    return {
        "input_ids": ids,
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([grid]),
        "mm_token_type_ids": (ids == VIDEO).int() * 2,
    }


def qwen3_video_inputs() -> Inputs:
    """`qwen_video_inputs`, where text stands between the frames."""
    inputs = qwen_video_inputs()
    ids = _around([token for _ in range(4) for token in [START, *[VIDEO] * 64, END]])
    return inputs | {"input_ids": ids, "mm_token_type_ids": (ids == VIDEO).int() * 2}


def internvl_image_inputs() -> Inputs:
    """16 frames of 4x4 = 16 tokens, as InternVL takes a video."""
    return {"input_ids": _around([IMAGE] * 256), "pixel_values": _random(16, 3, 32, 32)}


def llava_video_inputs() -> Inputs:
    """16 frames of 4x4 tokens and a closing one."""
    return {"input_ids": _around([VIDEO] * 257), "pixel_values_videos": _random(1, 16, 3, 32, 32)}


def paligemma_inputs() -> Inputs:
    """An image of 8x8 tokens, and a prompt of 44 that sees all of itself."""
    ids = torch.tensor([[IMAGE] * 64 + text_inputs(44)["input_ids"][0].tolist()])
    masks = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return {"input_ids": ids, "pixel_values": _random(1, 3, 32, 32), **masks}


def _without_head_dim() -> dict[str, Any]:
    return {key: value for key, value in _TEXT.items() if key != "head_dim"}


def _around(visual: list[int]) -> torch.Tensor:
    text = text_inputs(44)["input_ids"][0].tolist()
    return torch.tensor([[*text[:10], *visual, *text[10:]]])


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))
