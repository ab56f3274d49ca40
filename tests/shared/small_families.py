"""A small instance of every transformer class that has a family's row, with random weights, and arguments to call it.

Latents are 3 x 16 x 24, patches mostly 1 x 2 x 2: 288 visual tokens in a grid of 3 x 8 x 12.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import diffusers
import torch
from diffusers.models import transformers as classes
from packaging.version import Version
from torch import Tensor, nn

T, H, W = 3, 16, 24
GRID = (3, 8, 12)
VISUAL = prod(GRID)
TEXT = 20
IMAGE = (16, 18)

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Small:
    """One instance."""

    kind: str
    """Name of its class, without `Transformer3DModel`."""
    config: Inputs
    inputs: Callable[[], Inputs]
    latent: str = "bcthw"
    """Dimensions of `argument`; n: tokens."""
    argument: str = "hidden_states"
    grids: tuple[tuple[int, int, int], ...] = (GRID,)
    """Of its visual tokens; `argument` holds those of the last, or of the first where `latent` is of tokens."""
    since: str = "0.36"
    """Version of diffusers that takes these arguments."""
    reasons: tuple[str | None, ...] = (None,)
    """Why its calls run dense; None for sparse ones."""

    @property
    def class_name(self) -> str:
        return self.kind if "Transformer" in self.kind else f"{self.kind}Transformer3DModel"

    @property
    def is_there(self) -> bool:
        """Whether this version of diffusers has the class, with these arguments."""
        kind = getattr(classes, self.class_name, None) or getattr(diffusers, self.class_name, None)
        if kind is None:
            return False
        known = inspect.signature(kind.__init__).parameters
        recent = Version(diffusers.__version__) >= Version(self.since)
        return recent and all(name in known for name in self.config)

    def make(self) -> tuple[nn.Module, Inputs]:
        """The model and its arguments, from seed 0."""
        kind = getattr(classes, self.class_name, None) or getattr(diffusers, self.class_name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(**self.config).eval()
            for name, parameter in model.named_parameters():
                # Some start at zero, and would let no attention through; padding's starts as memory happens to be.
                if parameter.ndim and (not parameter.any() or name.endswith("pad_token")):
                    nn.init.normal_(parameter, std=0.1)
            return model, self.inputs()


def run(model: nn.Module, inputs: Inputs) -> Tensor:
    """The (first) output."""
    output = model(**inputs, return_dict=False)
    while isinstance(output, tuple | list):
        output = output[0]
    return output


def gradients(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Of every weight that has one, of the sum of squares of the output."""
    model.zero_grad()
    (run(model, inputs) ** 2).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape)


def valid(*lengths: int, of: int = TEXT) -> Tensor:
    """A mask of text: so many tokens of each item are there."""
    return (torch.arange(of) < torch.tensor(lengths)[:, None]).float()


def coordinates(*sizes: int) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).float()


def count(tokens: int) -> Tensor:
    return torch.arange(tokens).float()


def video(batch: int = 2, text: int = 16, **more: Any) -> Callable[[], Inputs]:
    """What most forwards want; values that are functions are called."""

    def inputs() -> Inputs:
        usual = {
            "hidden_states": noise(batch, 4, T, H, W),
            "timestep": torch.full((batch,), 500),
            "encoder_hidden_states": noise(batch, TEXT, text),
        }
        made = {name: value() if callable(value) else value for name, value in more.items()}
        return {name: value for name, value in (usual | made).items() if value is not None}

    return inputs


HEADS = dict(num_attention_heads=2, attention_head_dim=24)
SMALL_HEADS = dict(num_attention_heads=2, attention_head_dim=16)
LATENT = dict(in_channels=4, out_channels=4)
WAN = HEADS | LATENT | dict(patch_size=(1, 2, 2), text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2)
WAN_NORM = WAN | dict(cross_attn_norm=True, rope_max_seq_len=64)
ANIMATE = WAN_NORM | dict(in_channels=12, latent_channels=4, image_dim=16, added_kv_proj_dim=48)
ANIMATE |= dict(motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16}, motion_encoder_size=16, motion_style_dim=8)
ANIMATE |= dict(motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16, face_encoder_num_heads=2)
ANIMATE |= dict(inject_face_latents_blocks=2)
COGVIDEOX = LATENT | dict(
    num_attention_heads=2, attention_head_dim=32, time_embed_dim=8, text_embed_dim=8, num_layers=2
)
COGVIDEOX |= dict(sample_width=W, sample_height=H, sample_frames=9, patch_size=2, max_text_seq_length=TEXT)
COGVIDEOX |= dict(use_rotary_positional_embeddings=True)
FACE = dict(cross_attn_interval=1, is_kps=False, is_train_face=True, cross_attn_dim_head=8, cross_attn_num_heads=1)
FACE |= dict(LFE_id_dim=2, LFE_vit_dim=2, LFE_depth=5, LFE_dim_head=8, LFE_num_heads=2, LFE_num_id_token=1)
FACE |= dict(LFE_num_querie=1, LFE_output_dim=42, LFE_ff_mult=1, LFE_num_scale=1)
JOINT = HEADS | LATENT | dict(num_layers=2, num_single_layers=2, patch_size=2, patch_size_t=1)
REFINED = dict(num_refiner_layers=1, text_embed_dim=16)
HUNYUAN = JOINT | REFINED | dict(pooled_projection_dim=8, rope_axes_dim=(8, 8, 8), guidance_embeds=True)
HUNYUAN_15 = HEADS | LATENT | REFINED | dict(num_layers=2, mlp_ratio=2.0, patch_size=1, patch_size_t=1)
HUNYUAN_15 |= dict(text_embed_2_dim=12, image_embed_dim=10, rope_axes_dim=(8, 8, 8), target_size=16, task_type="t2v")
HUNYUAN_IMAGE = SMALL_HEADS | LATENT | REFINED | dict(num_layers=2, num_single_layers=2, mlp_ratio=2.0)
HUNYUAN_IMAGE |= dict(patch_size=(1, 1), rope_axes_dim=(8, 8))
MOTIF = JOINT | dict(num_single_layers=3, num_decoder_layers=1, text_embed_dim=32, rope_axes_dim=(8, 8, 8))
CROSS = SMALL_HEADS | LATENT | dict(cross_attention_dim=32, num_layers=2)
LTX2 = CROSS | dict(audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8)
LTX2 |= dict(audio_cross_attention_dim=16, caption_channels=16, rope_double_precision=False)
MOCHI = SMALL_HEADS | dict(patch_size=2, num_layers=2, pooled_projection_dim=16, in_channels=4, text_embed_dim=16)
MOCHI |= dict(time_embed_dim=4, max_sequence_length=TEXT)
ALLEGRO = HEADS | LATENT | dict(num_layers=2, cross_attention_dim=48, caption_channels=8)
ALLEGRO |= dict(sample_width=W, sample_height=H, sample_frames=T)
COSMOS = HEADS | LATENT | dict(num_layers=2, mlp_ratio=2, text_embed_dim=16, adaln_lora_dim=4, patch_size=(1, 2, 2))
COSMOS |= dict(max_size=(4, 32, 32), concat_padding_mask=False)
COSMOS_25 = COSMOS | dict(extra_pos_embed_type=None, text_embed_dim=48, use_crossattn_projection=True)
COSMOS_25 |= dict(crossattn_proj_in_channels=16, encoder_hidden_states_channels=48)
COSMOS_3 = dict(head_dim=16, hidden_act="relu2", hidden_size=32, intermediate_size=24, latent_channel=2, vocab_size=32)
COSMOS_3 |= dict(latent_patch_size=1, num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=1, rope_theta=1e8)
COSMOS_3 |= dict(patch_latent_dim=2, qk_norm_for_text=False, rms_norm_eps=1e-5, rope_axes_dim=[2, 3, 3])
EASYANIMATE = LATENT | dict(attention_head_dim=32, num_attention_heads=2, mmdit_layers=1, num_layers=2, patch_size=2)
EASYANIMATE |= dict(sample_height=H, sample_width=W, text_embed_dim=16, time_embed_dim=8)
LATTE = SMALL_HEADS | dict(
    sample_size=24, num_layers=1, patch_size=2, caption_channels=8, in_channels=4, out_channels=8
)
LATTE |= dict(cross_attention_dim=32, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000)
LATTE |= dict(norm_type="ada_norm_single", norm_elementwise_affine=False, video_length=3)
KANDINSKY = dict(
    in_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, out_visual_dim=4, model_dim=48, ff_dim=32
)
KANDINSKY |= dict(num_text_blocks=1, num_visual_blocks=2, axes_dims=(8, 8, 8))
MINIMAX = SMALL_HEADS | dict(hidden_size=24, num_layers=2, num_refiner_layers=1, ffn_dim=32, in_channels=4, text_dim=8)
MINIMAX |= dict(audio_in_channels=6, freq_dim=8, time_embed_hidden_dim=24, time_embed_dim=16, rope_freq_dim=2)
FLUX = SMALL_HEADS | dict(in_channels=4, num_layers=2, num_single_layers=2, joint_attention_dim=32)
QWEN = dict(in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4)
QWEN |= dict(joint_attention_dim=16, axes_dims_rope=(8, 4, 4))
SD = LATENT | dict(sample_size=32, patch_size=2, num_layers=2, attention_head_dim=8, num_attention_heads=4)
SD |= dict(caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, pos_embed_max_size=96)
SD |= dict(dual_attention_layers=(0,), qk_norm="rms_norm")
Z_IMAGE = dict(in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16)
Z_IMAGE |= dict(axes_dims=[8, 4, 4], axes_lens=[512, 64, 64])
LUMINA = dict(sample_size=32, patch_size=2, in_channels=4, hidden_size=64, num_layers=2, num_refiner_layers=1)
LUMINA |= dict(num_attention_heads=4, num_kv_heads=2, multiple_of=2, cap_feat_dim=32)
LUMINA |= dict(axes_dim_rope=(8, 4, 4), axes_lens=(128, 128, 128))


def _cogvideox() -> Inputs:
    tables = (noise(VISUAL, 32), noise(VISUAL, 32))
    return video(text=8, hidden_states=noise(2, T, 4, H, W), image_rotary_emb=tables)()


def _face() -> Inputs:
    return _cogvideox() | {"id_vit_hidden": [torch.ones(2, 2, 2)], "id_cond": torch.ones(2, 2)}


def _hunyuan(batch: int = 2, **more: Any) -> Callable[[], Inputs]:
    usual = {
        "pooled_projections": lambda: noise(batch, 8),
        "encoder_attention_mask": valid(*[13, 7][:batch]),
        "guidance": torch.full((batch,), 6000.0),
    }
    return video(batch, **usual | more)


def _framepack(batch: int) -> Small:
    history = {
        f"{prefix}latents_{name}": value
        for name, length in (("clean", 2), ("history_2x", 2), ("history_4x", 8))
        for prefix, value in (("", lambda length=length: noise(batch, 4, length, H, W)), ("indices_", count(length)))
    }
    more = {"image_embeds": lambda: noise(batch, 6, 16), "indices_latents": count(T), **history}
    config = HUNYUAN | dict(has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True)
    grids = ((2, 2, 3), (1, 4, 6), (2, 8, 12), GRID)
    return Small("HunyuanVideoFramepack", config, _hunyuan(batch, **more), grids=grids)


def _helios() -> Inputs:
    lengths = {"short": 1, "mid": 2, "long": 4}
    history = {f"latents_history_{name}": noise(1, 4, length, H, W) for name, length in lengths.items()}
    places = {f"indices_latents_history_{name}": count(length)[None] for name, length in lengths.items()}
    return video(1)() | history | places | {"indices_hidden_states": count(T)[None]}


def _allegro(kept: int = W) -> Callable[[], Inputs]:
    """Of the latent's width so much is no padding."""
    mask = (torch.arange(W) < kept).float().expand(2, T, H, W)
    return video(text=8, attention_mask=mask, encoder_attention_mask=valid(13, 7))


def _ltx(**more: Any) -> Callable[[], Inputs]:
    sizes = dict(zip(("num_frames", "height", "width"), GRID, strict=True))
    return video(**{"hidden_states": lambda: noise(2, VISUAL, 4)} | sizes | more)


def _ltx2() -> Inputs:
    audio = {"audio_hidden_states": noise(2, 9, 4), "audio_encoder_hidden_states": noise(2, TEXT, 16)}
    masks = dict.fromkeys(("encoder_attention_mask", "audio_encoder_attention_mask"), valid(13, 7).bool())
    return _ltx(timestep=torch.full((2,), 500.0), audio_num_frames=9, fps=25.0)() | audio | masks


def _kandinsky(**more: Any) -> Callable[[], Inputs]:
    return video(
        1,
        hidden_states=lambda: noise(1, T, H, W, 4),
        timestep=torch.tensor([500.0]),
        pooled_projections=lambda: noise(1, 8),
        visual_rope_pos=[torch.arange(size) for size in GRID],
        text_rope_pos=torch.arange(TEXT),
        **more,
    )


def _packed() -> Inputs:
    """MiniMax-H3: text, video and audio in one sequence."""
    length = TEXT + VISUAL + 9
    text, visual, audio = torch.arange(length).split([TEXT, VISUAL, 9])
    tags, times = (torch.zeros(length, dtype=torch.long) for _ in range(2))
    places = torch.zeros(length, 3)
    tags[text], tags[audio], times[audio] = 1, 2, 1
    places[:, 0], places[visual] = count(length), coordinates(*GRID)
    return {
        "hidden_states": noise(2, VISUAL, 16),
        "audio_hidden_states": noise(2, 9, 6),
        "encoder_hidden_states": noise(2, TEXT, 8),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": times,
        "token_tags": tags,
        "position_ids": places,
        "video_indices": visual,
        "audio_indices": audio,
        "text_indices": text,
    }


def _cosmos3() -> Inputs:
    places = torch.arange(TEXT, TEXT + VISUAL)
    return {
        "input_ids": torch.randint(0, 32, (TEXT,)),
        "text_indexes": torch.arange(TEXT),
        "position_ids": torch.randint(0, 9, (3, TEXT + VISUAL)),
        "und_len": TEXT,
        "sequence_length": TEXT + VISUAL,
        "vision_tokens": [noise(1, 2, *GRID)],
        "vision_token_shapes": [GRID],
        "vision_sequence_indexes": places,
        "vision_mse_loss_indexes": places,
        "vision_timesteps": torch.ones(VISUAL),
        "vision_noisy_frame_indexes": [torch.arange(3)],
    }


def _image(channels: int, text: int, **more: Any) -> Callable[[], Inputs]:
    """Image tokens, `[B, n, C]`, with a timestep between 0 and 1."""
    usual = {"hidden_states": lambda: noise(2, prod(IMAGE), channels), "timestep": torch.full((2,), 0.5)}
    return video(text=text, **usual | more)


def _qwen(*shapes: tuple[int, int, int]) -> Callable[[], Inputs]:
    return _image(
        16,
        16,
        hidden_states=lambda: noise(2, sum(prod(shape) for shape in shapes), 16),
        encoder_hidden_states_mask=valid(13, 7).long(),
        img_shapes=[shapes[0] if len(shapes) == 1 else list(shapes)] * 2,
    )


def _z_image(batch: int) -> Callable[[], Inputs]:
    return lambda: {
        "x": [noise(4, 1, 32, 36) for _ in range(batch)],
        "cap_feats": [noise([13, 40][item], 16) for item in range(batch)],
        "t": torch.full((batch,), 0.5),
    }


TEXT_MASK = dict(encoder_attention_mask=valid(13, 7))
BOOL_MASK = dict(encoder_attention_mask=valid(13, 7).bool())
COSMOS_MASK = dict(attention_mask=valid(13, 7).bool(), fps=24, padding_mask=torch.zeros(1, 1, H, W))
COSMOS_TIMES = dict(timestep=lambda: torch.rand(2, 1, T, 1, 1), **COSMOS_MASK)
TIMES = dict(timestep=torch.full((2,), 500.0))
ONE_IMAGE = dict(latent="bnc", grids=((1, *IMAGE),))
PIXELS = dict(latent="bchw", grids=((1, *IMAGE),))
FRAME_TIMES = torch.tensor([0.0, 500, 500]).repeat_interleave(96)[None].expand(2, -1)
FLUX_IDS = torch.cat([coordinates(1, *IMAGE), torch.zeros(prod(IMAGE), 1)], 1)[None].expand(2, -1, -1)


def _animate() -> Inputs:
    faces = dict(pose_hidden_states=noise(1, 4, 2, H, W), face_pixel_values=noise(1, 3, 5, 16, 16))
    texts = dict(encoder_hidden_states=noise(1, 512, 16), encoder_hidden_states_image=noise(1, 12, 16))
    return video(1, hidden_states=noise(1, 12, T, H, W), **texts, **faces)()


def _vace() -> Inputs:
    return video(control_hidden_states=noise(2, 6, T, H, W), control_hidden_states_scale=torch.ones(1))()


def _anyflow() -> Inputs:
    times = dict(timestep=torch.full((2, T), 500.0), r_timestep=torch.full((2, T), 250.0))
    return video(hidden_states=noise(2, T, 4, H, W), **times)()


def _hunyuan_15() -> Inputs:
    texts = dict(encoder_hidden_states_2=noise(2, 6, 12), encoder_attention_mask_2=valid(2, 5, of=6))
    return video(hidden_states=noise(2, 4, *GRID), image_embeds=torch.zeros(2, 3, 10), **TIMES, **TEXT_MASK, **texts)()


def _kandinsky_6() -> Inputs:
    extra = dict(pooled_projections=noise(2, 8), audio_hidden_states=noise(2, 9, 6))
    return video(hidden_states=noise(2, T, H, W, 4), **TIMES, **BOOL_MASK, **extra)()


def _forcing() -> Inputs:
    return video(1, timestep=torch.tensor([[900, 500, 100]]), enable_diffusion_forcing=True, fps=torch.tensor([1]))()


def _flux() -> Inputs:
    ids = dict(img_ids=coordinates(1, *IMAGE), txt_ids=torch.zeros(TEXT, 3))
    return _image(4, 32, pooled_projections=noise(2, 32), **ids)()


SMALL: dict[str, Small] = {
    "wan": Small("Wan", WAN_NORM, video()),
    "wan-ti2v": Small("Wan", WAN_NORM, video(timestep=FRAME_TIMES)),
    "wan-vace": Small("WanVACE", WAN_NORM | dict(vace_layers=[0], vace_in_channels=6), _vace),
    "wan-animate": Small("WanAnimate", ANIMATE, _animate),
    "skyreels-v2": Small("SkyReelsV2", WAN_NORM, video()),
    "skyreels-v2-forcing": Small("SkyReelsV2", WAN_NORM | dict(inject_sample_info=True), _forcing),
    "skyreels-v2-causal": Small(
        *("SkyReelsV2", WAN_NORM | dict(num_frame_per_block=3), video(hidden_states=lambda: noise(2, 4, 6, H, W))),
        grids=((6, 8, 12),),
        reasons=("attention mask",),
    ),
    "chronoedit": Small("ChronoEdit", WAN_NORM, video()),
    "anyflow": Small("AnyFlow", WAN | dict(rope_max_seq_len=64), _anyflow, latent="btchw"),
    "helios": Small("Helios", WAN | dict(rope_dim=(8, 8, 8)), _helios, grids=((1, 2, 3), (1, 4, 6), (1, 8, 12), GRID)),
    "cogvideox": Small("CogVideoX", COGVIDEOX, _cogvideox, latent="btchw"),
    "consisid": Small("ConsisID", COGVIDEOX | FACE, _face, latent="btchw"),
    "hunyuan-video": Small("HunyuanVideo", HUNYUAN, _hunyuan()),
    "hunyuan-video-i2v": Small(
        *("HunyuanVideo", HUNYUAN | dict(image_condition_type="token_replace", guidance_embeds=False)),
        _hunyuan(guidance=None),
    ),
    "framepack": _framepack(1),
    "framepack-batch": _framepack(2),
    "hunyuan-video-1.5": Small("HunyuanVideo15", HUNYUAN_15, _hunyuan_15),
    "hunyuan-image": Small(
        *("HunyuanImageTransformer2DModel", HUNYUAN_IMAGE),
        video(hidden_states=lambda: noise(2, 4, *IMAGE), **TIMES, **TEXT_MASK),
        **PIXELS,
    ),
    "motif-video": Small("MotifVideo", MOTIF, video(text=32, **TEXT_MASK)),
    "ltx": Small("LTXVideo", CROSS | dict(caption_channels=16), _ltx(**TEXT_MASK), latent="bnc"),
    "ltx-2": Small("LTX2Video", LTX2, _ltx2, latent="bnc"),
    "mochi": Small("Mochi", MOCHI, video(**BOOL_MASK)),
    "allegro": Small("Allegro", ALLEGRO, _allegro()),
    "allegro-padded": Small("Allegro", ALLEGRO, _allegro(kept=16)),
    "cosmos-1": Small("Cosmos", COSMOS, video(**COSMOS_MASK)),
    "cosmos-2": Small("Cosmos", COSMOS | dict(extra_pos_embed_type=None), video(**COSMOS_TIMES)),
    "cosmos-2.5": Small("Cosmos", COSMOS_25, video(**COSMOS_TIMES)),
    "cosmos-3": Small("Cosmos3OmniTransformer", COSMOS_3, _cosmos3, argument="vision_tokens", reasons=("causal", None)),
    "easyanimate": Small("EasyAnimate", EASYANIMATE, video()),
    "latte": Small(
        "Latte", LATTE, video(1, text=8, hidden_states=lambda: noise(1, 4, 3, 24, 24)), grids=((1, 12, 12),)
    ),
    "kandinsky-5": Small("Kandinsky5", KANDINSKY, _kandinsky(), latent="bthwc"),
    "kandinsky-6": Small(
        *("Kandinsky6", KANDINSKY | dict(visual_cond=False, in_audio_dim=6, out_audio_dim=6), _kandinsky_6),
        latent="bthwc",
    ),
    "minimax-h3": Small("MiniMaxH3", MINIMAX, _packed, latent="bnc"),
    "flux": Small(
        *("FluxTransformer2DModel", FLUX | dict(pooled_projection_dim=32, axes_dims_rope=[4, 4, 8]), _flux), **ONE_IMAGE
    ),
    "flux-2": Small(
        *("Flux2Transformer2DModel", FLUX | dict(axes_dims_rope=(4, 4, 4, 4))),
        _image(4, 32, img_ids=FLUX_IDS, txt_ids=torch.zeros(2, TEXT, 4), guidance=torch.ones(2)),
        **ONE_IMAGE,
    ),
    "qwen-image": Small("QwenImageTransformer2DModel", QWEN, _qwen((1, *IMAGE)), since="0.37", **ONE_IMAGE),
    "qwen-image-edit": Small(
        *("QwenImageTransformer2DModel", QWEN, _qwen((1, *IMAGE), (1, 8, 10))),
        since="0.37",
        latent="bnc",
        grids=((1, *IMAGE), (1, 8, 10)),
    ),
    "sd-3.5": Small(
        *("SD3Transformer2DModel", SD),
        video(text=32, hidden_states=lambda: noise(2, 4, 32, 36), pooled_projections=lambda: noise(2, 64)),
        **PIXELS,
    ),
    **{
        name: Small("ZImageTransformer2DModel", Z_IMAGE, _z_image(batch), "cthw", "x", ((1, *IMAGE),))
        for name, batch in (("z-image", 1), ("z-image-batch", 2))
    },
    "lumina-2": Small(
        *("Lumina2Transformer2DModel", LUMINA),
        video(text=32, hidden_states=lambda: noise(2, 4, 32, 36), timestep=torch.full((2,), 0.5), **BOOL_MASK),
        **PIXELS,
    ),
}
