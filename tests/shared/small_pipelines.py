"""Small pipelines of diffusers' own classes with random weights, made offline in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanModularPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
    modular_pipelines,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from psa_triton import PSAConfig
from psa_triton.integrations.diffusers import PSAStats

SPARSE = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 0.3), 0: (0.3, 1)})
TEXT_DIM = 32
TEXT_TOKENS = 13
GRID = (3, 5, 7)
"""Visual tokens of `make_video` by default: sides no power of two, 105 tokens that fill no whole blocks."""

_WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "square", "circle", "moving", "left", "right")
_SMALL_TEXT_ENCODER = {"vocab_size": len(_WORDS), "d_model": TEXT_DIM, "d_kv": 16, "num_heads": 2, "d_ff": 64}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, closed by an end token."""
    vocabulary = {word: index for index, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


_SMALL_WAN = dict(num_attention_heads=2, attention_head_dim=32, in_channels=16, out_channels=16, num_layers=2)
_SMALL_WAN |= dict(text_dim=TEXT_DIM, freq_dim=32, ffn_dim=64, rope_max_seq_len=32)
_SMALL_COGVIDEOX = dict(num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=4, num_layers=2)
_SMALL_COGVIDEOX |= dict(time_embed_dim=16, text_embed_dim=TEXT_DIM, sample_width=14, sample_height=10, sample_frames=9)
_SMALL_COGVIDEOX |= dict(max_text_seq_length=TEXT_TOKENS, use_rotary_positional_embeddings=True)


def make_wan_transformer(seed: int = 0, **changes: Any) -> WanTransformer3DModel:
    """Two layers, two heads of 32, patches of 1 x 2 x 2; random weights."""
    with _seeded(seed):
        return WanTransformer3DModel(**_SMALL_WAN | changes).eval()


def make_wan_vace_transformer(**changes: Any) -> WanVACETransformer3DModel:
    """`make_wan_transformer` with a control block that adds to its first block."""
    with _seeded(0):
        return WanVACETransformer3DModel(**_SMALL_WAN | {"vace_layers": [0], "vace_in_channels": 8} | changes).eval()


def make_cogvideox_transformer(**changes: Any) -> CogVideoXTransformer3DModel:
    """Two layers, two heads of 32, rotary tables, patches of 1 x 2 x 2; random weights from seed 0."""
    with _seeded(0):
        return CogVideoXTransformer3DModel(**_SMALL_COGVIDEOX | changes).eval()


def make_wan_pipeline(
    transformer: WanTransformer3DModel | None = None, *, two_transformers: bool = False, expand_timesteps: bool = False
) -> WanPipeline:
    """A `WanPipeline`; with two transformers the second takes over at half the noise."""
    with _seeded(1):
        text_encoder = UMT5EncoderModel(UMT5Config(**_SMALL_TEXT_ENCODER, num_layers=1, dropout_rate=0.0)).eval()
        vae = AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
    return WanPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0),
        transformer=transformer or make_wan_transformer(),
        transformer_2=make_wan_transformer(seed=2) if two_transformers else None,
        boundary_ratio=0.5 if two_transformers else None,
        expand_timesteps=expand_timesteps,
    )


def make_wan_modular_pipeline(components: dict[str, Any]) -> WanModularPipeline:
    """A `WanModularPipeline` with what it can use of these `components`; without any it has loaded nothing."""
    # Before diffusers 0.37 the blocks of text to video had another name.
    blocks = getattr(modular_pipelines, "WanBlocks", None) or modular_pipelines.WanAutoBlocks
    pipe = blocks().init_pipeline()
    pipe.update_components(**{name: components[name] for name in pipe.components if name in components})
    return pipe


def make_cogvideox_pipeline(transformer: CogVideoXTransformer3DModel | None = None) -> CogVideoXPipeline:
    """A `CogVideoXPipeline`."""
    with _seeded(1):
        text_encoder = T5EncoderModel(T5Config(**_SMALL_TEXT_ENCODER, num_layers=1, dropout_rate=0.0)).eval()
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        )
    return CogVideoXPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer or make_cogvideox_transformer(),
        scheduler=CogVideoXDDIMScheduler(),
    )


def make_wan_image_pipeline(*, expand_timesteps: bool = False, two_transformers: bool = False) -> DiffusionPipeline:
    """A `WanImageToVideoPipeline` as Wan2.1's, with image tokens as keys; as Wan2.2-5B's, with a timestep per token; or
    as A14B's, with two transformers. The first wants `max_sequence_length=512`: it takes so many keys for text.
    """
    encoder = processor = None
    if expand_timesteps or two_transformers:
        channels = {} if expand_timesteps else {"in_channels": 36}
        first = make_wan_transformer(**channels)
    else:
        first = make_wan_transformer(in_channels=36, image_dim=24, added_kv_proj_dim=64)
        small_image_encoder = {"hidden_size": 24, "intermediate_size": 32, "image_size": 8, "patch_size": 4}
        with _seeded(1):
            encoder = CLIPVisionModel(
                CLIPVisionConfig(**small_image_encoder, num_hidden_layers=2, num_attention_heads=2)
            ).eval()
        processor = CLIPImageProcessor(size=8, crop_size=8, do_rescale=False)
    second = make_wan_transformer(seed=2, in_channels=36) if two_transformers else None
    parts = make_wan_pipeline(first).components | {"transformer_2": second}
    return WanImageToVideoPipeline(
        **parts | {"image_encoder": encoder, "image_processor": processor},
        boundary_ratio=0.5 if two_transformers else None,
        expand_timesteps=expand_timesteps,
    )


def make_cogvideox_image_pipeline() -> CogVideoXImageToVideoPipeline:
    """A `CogVideoXImageToVideoPipeline`."""
    return CogVideoXImageToVideoPipeline(
        **make_cogvideox_pipeline(make_cogvideox_transformer(in_channels=8)).components
    )


def make_image() -> torch.Tensor:
    """An image of the size that `make_video` makes by default, values 0 to 1."""
    return torch.rand(1, 3, 16 * GRID[1], 16 * GRID[2], generator=torch.Generator().manual_seed(3))


def make_video_from_video(pipe: DiffusionPipeline, *, steps: int, strength: float) -> torch.Tensor:
    """Latents of a video made from noise and a given video; of the schedule the last `strength` is used."""
    frames, height, width = GRID
    video = torch.rand(1, 4 * frames - 3, 3, 16 * height, 16 * width, generator=torch.Generator().manual_seed(4))
    return pipe(
        video=video,
        prompt="a red square moving left",
        height=16 * height,
        width=16 * width,
        num_inference_steps=steps,
        strength=strength,
        guidance_scale=3.0,
        max_sequence_length=TEXT_TOKENS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


def make_video(
    pipe: DiffusionPipeline,
    *,
    steps: int = 3,
    guidance_scale: float = 1.0,
    grid: tuple[int, int, int] = GRID,
    seed: int = 0,
    **more: Any,
) -> torch.Tensor:
    """Latents of a video of `grid` = (frames, height, width) latent frames and patches of 2 x 2 latent pixels."""
    frames, height, width = grid
    return pipe(
        prompt="a red square moving left",
        negative_prompt="",
        num_frames=4 * (frames - 1) + 1,
        height=16 * height,
        width=16 * width,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        **{"output_type": "latent", "max_sequence_length": TEXT_TOKENS} | more,
    ).frames


def make_wan_inputs(**changes: Any) -> dict[str, Any]:
    """Arguments of one forward of `make_wan_transformer()` over `GRID`, random from seed 0."""
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 16, 3, 10, 14, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, TEXT_DIM, generator=generator),
    } | changes


def make_cogvideox_inputs(**changes: Any) -> dict[str, Any]:
    """Arguments of one forward of `make_cogvideox_transformer()` over `GRID`, random from seed 0."""
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 3, 4, 10, 14, generator=generator),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, TEXT_DIM, generator=generator),
        "timestep": torch.tensor([500]),
        "image_rotary_emb": tuple(torch.randn(105, 32, generator=generator) for _ in range(2)),
    } | changes


BOTH = pytest.mark.parametrize("make_pipe", [make_wan_pipeline, make_cogvideox_pipeline], ids=["wan", "cogvideox"])


def assert_equal_to_rounding(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.std().item())


def is_clean(model: torch.nn.Module) -> bool:
    """Whether no part of it has hooks or anything of PSA."""
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or hasattr(module, "psa_layer")
        or any(type(value).__module__.startswith("psa_triton") for value in vars(module).values())
        for module in model.modules()
    )


def sparse_steps(stats: PSAStats) -> dict[int | None, bool]:
    """Whether each step ran sparse, as the stats tell of the first layer."""
    return {record.step: record.sparse for record in stats.records if record.layer == 0}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a seed, and leave the random state outside as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
