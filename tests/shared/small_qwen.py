"""A Qwen2.5-VL of 100,000 random weights, with a tokenizer made here, saved as a user would find it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
# As Qwen2.5-VL's own, without system message and several turns.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_ID_NAMES = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
CONTEXT = 2048


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a letter: what ASCII can print, space, line end; and the special tokens."""
    alphabet = sorted(letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter.isascii() or letter in "ĠĊ")
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Two layers of two query heads and one key head each; the vision model sees windows, then everything.

    Weights are large enough that the answer depends on what is seen.
    """
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in zip(_ID_NAMES, SPECIAL[3:], strict=True)}
    text = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    text |= dict(vocab_size=len(tokenizer), initializer_range=0.3, max_position_embeddings=CONTEXT)
    text |= dict(rope_parameters={"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0})
    text |= dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    vision = dict(depth=2, initializer_range=0.1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64)
    vision |= dict(fullatt_block_indexes=[1], window_size=112, tokens_per_second=2)
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)


def save_small_qwen(folder: Path) -> Path:
    """Images keep at most 64 visual tokens, frames at most 32: a carphone clip of 16 frames is 240 tokens."""
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(make_config(tokenizer)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    sizes = {"preprocessor_config.json": 64, "video_preprocessor_config.json": 32}
    for name, tokens in sizes.items():
        pixels = {"min_pixels": 4 * 28 * 28, "max_pixels": tokens * 28 * 28}
        (folder / name).write_text(json.dumps(settings | pixels, indent=2))
    return folder


def save_small_qwen2_vl(small_qwen: Path, folder: Path) -> Path:
    """The same with a Qwen2-VL, whose vision model has no windows and whose positions count frames."""
    shutil.copytree(small_qwen, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    newer = Qwen2_5_VLConfig.from_pretrained(small_qwen)
    config = Qwen2VLConfig(
        text_config={**newer.text_config.to_dict(), "model_type": "qwen2_vl_text"},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "initializer_range": 0.1},
        **{name: getattr(newer, name) for name in _ID_NAMES if hasattr(newer, name)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    return folder
