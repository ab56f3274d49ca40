"""What the built-in model is made of: codec, tokenizer, text encoder, transformer, scheduler."""

from __future__ import annotations

import itertools

import torch
from clips import COLOURS, DIRECTIONS, SHAPES, TRAINED, make_clips
from diffusers import UniPCMultistepScheduler
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from psa_triton.tools.builtin import FrameWanTransformer3DModel, LinearVideoCodec

# New words go to the end: a word's place is its row of the embedding.
WORDS = (*COLOURS, *SHAPES, *DIRECTIONS, "a", "moving", "going", "small", "large", "and", "over", "stripes")
SPECIAL = ("<pad>", "</s>", "<unk>")
TEXT_DIM = 96


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer; its end token keeps the empty prompt from being empty."""
    vocabulary = {w: i for i, w in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def make_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=vocabulary, d_model=TEXT_DIM, d_kv=32, num_heads=3, d_ff=192, num_layers=1, dropout_rate=0.0
    )
    return UMT5EncoderModel(config)


def make_transformer() -> FrameWanTransformer3DModel:
    model = FrameWanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=3,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=768,
        num_layers=4,
        rope_max_seq_len=256,
    )
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    return model


def make_scheduler(shift: float) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    )


def fit_codec(seed: int = 0, whitening: float = 0.5) -> LinearVideoCodec:
    """PCA of the training clips' blocks.

    `whitening` divides each latent channel by its standard deviation to this power (relative to the first channel):
    at 1 every channel has unit variance and faint edge detail weighs as much in the loss as colour and place.
    """
    generator = torch.Generator().manual_seed(seed)
    codec = LinearVideoCodec()
    subjects = list(itertools.islice(itertools.cycle(TRAINED), 240))
    blocks = torch.cat(
        [codec.blocks(make_clips(subjects, 13, size, size, generator)).flatten(0, 3) for size in (64, 96)]
    )
    center = blocks.mean(0)
    centred = blocks - center
    variance, vectors = torch.linalg.eigh(centred.T.double() @ centred.double() / len(blocks))
    basis = vectors[:, -codec.config.z_dim :].flip(1).T.float()
    std = variance[-codec.config.z_dim :].flip(0).float().sqrt()
    std = std[0] * (std / std[0]) ** whitening
    codec.register_to_config(latents_mean=[0.0] * len(std), latents_std=[round(s, 6) for s in std.tolist()])
    codec.basis.data.copy_(basis)
    codec.center.data.copy_(center)
    return codec.requires_grad_(False).eval()
