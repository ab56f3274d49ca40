"""A small instance of every transformer class that has a family's row, with random weights, and arguments to call it.

Latents are 3 x 16 x 24, patches mostly 1 x 2 x 2: 288 visual tokens in a grid of 3 x 8 x 12.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, kw_only=True)
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


HEADS = {"num_attention_heads": 2, "attention_head_dim": 24}
LATENT = {"in_channels": 4, "out_channels": 4}
WAN = HEADS | LATENT | {"patch_size": (1, 2, 2), "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2}
WAN_NORM = WAN | {"cross_attn_norm": True, "rope_max_seq_len": 64}
ANIMATE = {
    **WAN_NORM,
    "in_channels": 12,
    "latent_channels": 4,
    "image_dim": 16,
    "added_kv_proj_dim": 48,
    "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
    "motion_encoder_size": 16,
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
}
COGVIDEOX = {
    **LATENT,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "time_embed_dim": 8,
    "text_embed_dim": 8,
    "num_layers": 2,
    "sample_width": W,
    "sample_height": H,
    "sample_frames": 9,
    "patch_size": 2,
    "max_text_seq_length": TEXT,
    "use_rotary_positional_embeddings": True,
}
FACE = {
    "cross_attn_interval": 1,
    "is_kps": False,
    "is_train_face": True,
    "cross_attn_dim_head": 8,
    "cross_attn_num_heads": 1,
    "LFE_id_dim": 2,
    "LFE_vit_dim": 2,
    "LFE_depth": 5,
    "LFE_dim_head": 8,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 1,
    "LFE_num_querie": 1,
    "LFE_output_dim": 42,
    "LFE_ff_mult": 1,
    "LFE_num_scale": 1,
}
JOINT = HEADS | LATENT | {"num_layers": 2, "num_single_layers": 2, "patch_size": 2, "patch_size_t": 1}
HUNYUAN = JOINT | {
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (8, 8, 8),
    "guidance_embeds": True,
}
CROSS = LATENT | {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 2}
COSMOS = (
    HEADS
    | LATENT
    | {
        "num_layers": 2,
        "mlp_ratio": 2,
        "text_embed_dim": 16,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "patch_size": (1, 2, 2),
        "concat_padding_mask": False,
    }
)
KANDINSKY = {
    "in_visual_dim": 4,
    "in_text_dim": 16,
    "in_text_dim2": 8,
    "time_dim": 16,
    "out_visual_dim": 4,
    "model_dim": 48,
    "ff_dim": 32,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (8, 8, 8),
}
FLUX = {"in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}


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
    return Small(
        kind="HunyuanVideoFramepack",
        config=HUNYUAN | {"has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        inputs=_hunyuan(batch, **more),
        grids=((2, 2, 3), (1, 4, 6), (2, 8, 12), GRID),
    )


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


ONE_IMAGE = ((1, *IMAGE),)
QWEN = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 16,
    "axes_dims_rope": (8, 4, 4),
}
Z_IMAGE = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 16,
    "axes_dims": [8, 4, 4],
    "axes_lens": [512, 64, 64],
}
LTX_TEXT = {"encoder_attention_mask": valid(13, 7)}
COSMOS_MASK = {"attention_mask": valid(13, 7).bool(), "fps": 24, "padding_mask": torch.zeros(1, 1, H, W)}
COSMOS_TIMES = {"timestep": lambda: torch.rand(2, 1, T, 1, 1), **COSMOS_MASK}

SMALL: dict[str, Small] = {
    "wan": Small(kind="Wan", config=WAN_NORM, inputs=video()),
    "wan-ti2v": Small(
        kind="Wan",
        config=WAN_NORM,
        inputs=video(timestep=torch.tensor([0.0, 500, 500]).repeat_interleave(96)[None].expand(2, -1)),
    ),
    "wan-vace": Small(
        kind="WanVACE",
        config=WAN_NORM | {"vace_layers": [0], "vace_in_channels": 6},
        inputs=video(control_hidden_states=lambda: noise(2, 6, T, H, W), control_hidden_states_scale=torch.ones(1)),
    ),
    "wan-animate": Small(
        kind="WanAnimate",
        config=ANIMATE,
        inputs=video(
            1,
            hidden_states=lambda: noise(1, 12, T, H, W),
            encoder_hidden_states=lambda: noise(1, 512, 16),
            encoder_hidden_states_image=lambda: noise(1, 12, 16),
            pose_hidden_states=lambda: noise(1, 4, 2, H, W),
            face_pixel_values=lambda: noise(1, 3, 5, 16, 16),
        ),
    ),
    "skyreels-v2": Small(kind="SkyReelsV2", config=WAN_NORM, inputs=video()),
    "skyreels-v2-forcing": Small(
        kind="SkyReelsV2",
        config=WAN_NORM | {"inject_sample_info": True},
        inputs=video(1, timestep=torch.tensor([[900, 500, 100]]), enable_diffusion_forcing=True, fps=torch.tensor([1])),
    ),
    "skyreels-v2-causal": Small(
        kind="SkyReelsV2",
        config=WAN_NORM | {"num_frame_per_block": 3},
        inputs=video(hidden_states=lambda: noise(2, 4, 6, H, W)),
        grids=((6, 8, 12),),
        reasons=("attention mask",),
    ),
    "chronoedit": Small(kind="ChronoEdit", config=WAN_NORM, inputs=video()),
    "anyflow": Small(
        kind="AnyFlow",
        config=WAN | {"rope_max_seq_len": 64},
        inputs=video(
            hidden_states=lambda: noise(2, T, 4, H, W),
            timestep=torch.full((2, T), 500.0),
            r_timestep=torch.full((2, T), 250.0),
        ),
        latent="btchw",
    ),
    "helios": Small(
        kind="Helios",
        config=WAN | {"rope_dim": (8, 8, 8)},
        inputs=_helios,
        grids=((1, 2, 3), (1, 4, 6), (1, 8, 12), GRID),
    ),
    "cogvideox": Small(kind="CogVideoX", config=COGVIDEOX, inputs=_cogvideox, latent="btchw"),
    "consisid": Small(kind="ConsisID", config=COGVIDEOX | FACE, inputs=_face, latent="btchw"),
    "hunyuan-video": Small(kind="HunyuanVideo", config=HUNYUAN, inputs=_hunyuan()),
    "hunyuan-video-i2v": Small(
        kind="HunyuanVideo",
        config=HUNYUAN | {"image_condition_type": "token_replace", "guidance_embeds": False},
        inputs=_hunyuan(guidance=None),
    ),
    "framepack": _framepack(1),
    "framepack-batch": _framepack(2),
    "hunyuan-video-1.5": Small(
        kind="HunyuanVideo15",
        config=HEADS
        | LATENT
        | {
            "num_layers": 2,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "patch_size": 1,
            "patch_size_t": 1,
            "text_embed_dim": 16,
            "text_embed_2_dim": 12,
            "image_embed_dim": 10,
            "rope_axes_dim": (8, 8, 8),
            "target_size": 16,
            "task_type": "t2v",
        },
        inputs=video(
            hidden_states=lambda: noise(2, 4, *GRID),
            timestep=torch.full((2,), 500.0),
            encoder_attention_mask=valid(13, 7),
            encoder_hidden_states_2=lambda: noise(2, 6, 12),
            encoder_attention_mask_2=valid(2, 5, of=6),
            image_embeds=torch.zeros(2, 3, 10),
        ),
    ),
    "hunyuan-image": Small(
        kind="HunyuanImageTransformer2DModel",
        config=LATENT
        | {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "num_single_layers": 2}
        | {
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "patch_size": (1, 1),
            "text_embed_dim": 16,
            "rope_axes_dim": (8, 8),
        },
        inputs=video(
            hidden_states=lambda: noise(2, 4, *IMAGE),
            timestep=torch.full((2,), 500.0),
            encoder_attention_mask=valid(13, 7),
        ),
        latent="bchw",
        grids=ONE_IMAGE,
    ),
    "motif-video": Small(
        kind="MotifVideo",
        config=JOINT
        | {"num_single_layers": 3, "num_decoder_layers": 1, "text_embed_dim": 32, "rope_axes_dim": (8, 8, 8)},
        inputs=video(text=32, encoder_attention_mask=valid(13, 7)),
    ),
    "ltx": Small(kind="LTXVideo", config=CROSS | {"caption_channels": 16}, inputs=_ltx(**LTX_TEXT), latent="bnc"),
    "ltx-2": Small(
        kind="LTX2Video",
        config=CROSS
        | {
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
        }
        | {"audio_cross_attention_dim": 16, "caption_channels": 16, "rope_double_precision": False},
        inputs=_ltx2,
        latent="bnc",
    ),
    "mochi": Small(
        kind="Mochi",
        config={"patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
        | {
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": TEXT,
        },
        inputs=video(encoder_attention_mask=valid(13, 7).bool()),
    ),
    "allegro": Small(
        kind="Allegro",
        config=HEADS
        | LATENT
        | {
            "num_layers": 2,
            "cross_attention_dim": 48,
            "sample_width": W,
            "sample_height": H,
            "sample_frames": T,
            "caption_channels": 8,
        },
        inputs=_allegro(),
    ),
    "cosmos-1": Small(kind="Cosmos", config=COSMOS, inputs=video(**COSMOS_MASK)),
    "cosmos-2": Small(kind="Cosmos", config=COSMOS | {"extra_pos_embed_type": None}, inputs=video(**COSMOS_TIMES)),
    "cosmos-2.5": Small(
        kind="Cosmos",
        config=COSMOS
        | {"extra_pos_embed_type": None, "text_embed_dim": 48, "use_crossattn_projection": True}
        | {"crossattn_proj_in_channels": 16, "encoder_hidden_states_channels": 48},
        inputs=video(**COSMOS_TIMES),
    ),
    "cosmos-3": Small(
        kind="Cosmos3OmniTransformer",
        config={"head_dim": 16, "hidden_act": "relu2", "hidden_size": 32, "intermediate_size": 24, "latent_channel": 2}
        | {"latent_patch_size": 1, "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1}
        | {"patch_latent_dim": 2, "qk_norm_for_text": False, "rms_norm_eps": 1e-5, "rope_axes_dim": [2, 3, 3]}
        | {"rope_theta": 1e8, "vocab_size": 32},
        inputs=_cosmos3,
        argument="vision_tokens",
        reasons=("causal", None),
    ),
    "easyanimate": Small(
        kind="EasyAnimate",
        config={
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "in_channels": 4,
            "mmdit_layers": 1,
            "num_layers": 2,
        }
        | {
            "out_channels": 4,
            "patch_size": 2,
            "sample_height": H,
            "sample_width": W,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
        },
        inputs=video(),
    ),
    "latte": Small(
        kind="Latte",
        config={"sample_size": 24, "num_layers": 1, "patch_size": 2, "attention_head_dim": 16, "num_attention_heads": 2}
        | {
            "caption_channels": 8,
            "in_channels": 4,
            "cross_attention_dim": 32,
            "out_channels": 8,
            "attention_bias": True,
        }
        | {"activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single"}
        | {"norm_elementwise_affine": False, "video_length": 3},
        inputs=video(1, text=8, hidden_states=lambda: noise(1, 4, 3, 24, 24)),
        grids=((1, 12, 12),),
    ),
    "kandinsky-5": Small(kind="Kandinsky5", config=KANDINSKY, inputs=_kandinsky(), latent="bthwc"),
    "kandinsky-6": Small(
        kind="Kandinsky6",
        config=KANDINSKY | {"visual_cond": False, "in_audio_dim": 6, "out_audio_dim": 6},
        inputs=video(
            hidden_states=lambda: noise(2, T, H, W, 4),
            timestep=torch.full((2,), 500.0),
            pooled_projections=lambda: noise(2, 8),
            audio_hidden_states=lambda: noise(2, 9, 6),
            encoder_attention_mask=valid(13, 7).bool(),
        ),
        latent="bthwc",
    ),
    "minimax-h3": Small(
        kind="MiniMaxH3",
        config={"num_attention_heads": 2, "attention_head_dim": 16, "hidden_size": 24, "num_layers": 2}
        | {
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 6,
            "text_dim": 8,
            "freq_dim": 8,
        }
        | {"time_embed_hidden_dim": 24, "time_embed_dim": 16, "rope_freq_dim": 2},
        inputs=_packed,
        latent="bnc",
    ),
    "flux": Small(
        kind="FluxTransformer2DModel",
        config=FLUX | {"joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": [4, 4, 8]},
        inputs=_image(
            4, 32, pooled_projections=lambda: noise(2, 32), img_ids=coordinates(1, *IMAGE), txt_ids=torch.zeros(TEXT, 3)
        ),
        latent="bnc",
        grids=ONE_IMAGE,
    ),
    "flux-2": Small(
        kind="Flux2Transformer2DModel",
        config=FLUX | {"joint_attention_dim": 32, "axes_dims_rope": (4, 4, 4, 4)},
        inputs=_image(
            4,
            32,
            img_ids=torch.cat([coordinates(1, *IMAGE), torch.zeros(prod(IMAGE), 1)], 1)[None].expand(2, -1, -1),
            txt_ids=torch.zeros(2, TEXT, 4),
            guidance=torch.ones(2),
        ),
        latent="bnc",
        grids=ONE_IMAGE,
    ),
    "qwen-image": Small(
        kind="QwenImageTransformer2DModel",
        since="0.37",
        config=QWEN,
        inputs=_qwen((1, *IMAGE)),
        latent="bnc",
        grids=ONE_IMAGE,
    ),
    "sd-3.5": Small(
        kind="SD3Transformer2DModel",
        config={"sample_size": 32, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8}
        | {"num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 32, "out_channels": 4}
        | {"pooled_projection_dim": 64, "pos_embed_max_size": 96, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        inputs=video(text=32, hidden_states=lambda: noise(2, 4, 32, 36), pooled_projections=lambda: noise(2, 64)),
        latent="bchw",
        grids=ONE_IMAGE,
    ),
    "z-image": Small(
        kind="ZImageTransformer2DModel",
        config=Z_IMAGE,
        inputs=_z_image(1),
        latent="cthw",
        argument="x",
        grids=ONE_IMAGE,
    ),
    "lumina-2": Small(
        kind="Lumina2Transformer2DModel",
        config={"sample_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "num_layers": 2}
        | {"num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 2, "cap_feat_dim": 32}
        | {"axes_dim_rope": (8, 4, 4), "axes_lens": (128, 128, 128)},
        inputs=video(
            text=32,
            hidden_states=lambda: noise(2, 4, 32, 36),
            timestep=torch.full((2,), 0.5),
            encoder_attention_mask=valid(13, 7).bool(),
        ),
        latent="bchw",
        grids=ONE_IMAGE,
    ),
}
SMALL["allegro-padded"] = replace(SMALL["allegro"], inputs=_allegro(kept=16))
SMALL["z-image-batch"] = replace(SMALL["z-image"], inputs=_z_image(2))
SMALL["qwen-image-edit"] = replace(
    SMALL["qwen-image"], inputs=_qwen((1, *IMAGE), (1, 8, 10)), grids=((1, *IMAGE), (1, 8, 10))
)
