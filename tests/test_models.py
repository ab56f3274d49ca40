import diffusers
import pytest
import transformers
from packaging.version import Version

from psa_triton.models import MODELS, QWEN2_5_VL, recognise
from psa_triton.presets import load_preset

# key: (hub id, preset section, width, height, frames, steps, guidance, second guidance, fps)
CHECKPOINTS = {
    "cogvideo_5b": ("THUDM/CogVideoX-5b", "CogVideo_5b", 720, 480, 49, 50, 6.0, None, 8),
    "cogvideo1.5_5b": ("THUDM/CogVideoX1.5-5B", "CogVideo1.5_5b", 1360, 768, 81, 50, 6.0, None, 8),
    "cogvideo_5b_lora": ("THUDM/CogVideoX-5b", "CogVideo_5b", 720, 480, 49, 4, 1.0, None, 8),
    "wan21_1.3b": ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan2.1_1.3b", 1280, 720, 69, 50, 5.0, None, 16),
    "wan21_14b": ("Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan2.1_14b", 1280, 720, 69, 50, 5.0, None, 16),
    "wan22_5b": ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "Wan2.2_5B", 1280, 704, 121, 50, 5.0, None, 24),
    "wan22_a14b": ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "Wan2.2_A14B", 1280, 768, 69, 40, 4.0, 3.0, 16),
}
FIELDS = [
    *("hub_id", "preset_section", "width", "height", "num_frames", "num_inference_steps"),
    *("guidance_scale", "guidance_scale_2", "fps"),
]


def test_registry_holds_these_checkpoints():
    found = {key: tuple(getattr(spec, field) for field in FIELDS) for key, spec in MODELS.items()}
    assert found.items() >= CHECKPOINTS.items()
    assert all(spec.key == key for key, spec in MODELS.items())


def test_the_understanding_model_has_presets_too():
    assert (QWEN2_5_VL.key, QWEN2_5_VL.hub_id) == ("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct")
    assert load_preset(QWEN2_5_VL.preset_section) is not None


def test_only_the_lora_model_has_a_lora_and_a_preset_of_its_own():
    loras = {spec.key: (spec.lora_path, spec.preset) for spec in MODELS.values() if spec.lora_path}
    path = "GYP666/BLADE/cogvideox-5b-psa-lora/pytorch_lora_weights.safetensors"
    assert loras == {"cogvideo_5b_lora": (path, "psa_4steps")}
    assert [spec.key for spec in MODELS.values() if spec.preset] == ["tiny-wan-1k", "tiny-wan-16k", "cogvideo_5b_lora"]


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_everything_a_row_names_exists(spec):
    assert load_preset(spec.preset_section, spec.preset) is not None
    # The oldest release of diffusers lacks some.
    assert hasattr(diffusers, spec.pipeline) or Version(diffusers.__version__) < Version("0.42")
    assert spec.scheduler is None or hasattr(diffusers, spec.scheduler)
    assert all(hasattr(diffusers, kind) or hasattr(transformers, kind) for kind, *_ in spec.parts.values())


@pytest.mark.parametrize(
    ("key", "size", "shift"),
    [
        ("wan21_1.3b", (1280, 720), 5.0),
        ("wan21_1.3b", (832, 480), 3.0),
        ("wan21_14b", (480, 832), 3.0),
        ("wan22_5b", (832, 480), None),
    ],
)
def test_flow_shift_follows_the_size(key, size, shift):
    assert MODELS[key].flow_shift_at(*size) == shift


# What the checkpoints' transformer/config.json files say.
WAN = {"_class_name": "WanTransformer3DModel", "attention_head_dim": 128, "in_channels": 16}
COGVIDEOX = {
    "_class_name": "CogVideoXTransformer3DModel",
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "num_layers": 42,
    "in_channels": 16,
}
WAN_1_3B = {**WAN, "num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
WAN_14B = {**WAN, "num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}


@pytest.mark.parametrize(
    ("config", "two_transformers", "section"),
    [
        (WAN_1_3B, False, "Wan2.1_1.3b"),
        (WAN_14B, False, "Wan2.1_14b"),
        (WAN_14B, True, "Wan2.2_A14B"),
        ({**WAN, "num_attention_heads": 24, "num_layers": 30, "in_channels": 48}, False, "Wan2.2_5B"),
        ({**COGVIDEOX, "patch_size_t": None}, False, "CogVideo_5b"),
        (COGVIDEOX, False, "CogVideo_5b"),  # saved before diffusers had patch_size_t
        ({**COGVIDEOX, "patch_size_t": 2}, False, "CogVideo1.5_5b"),
        ({**WAN_14B, "in_channels": 36}, True, "Wan2.2_A14B"),  # from a picture
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_recognises_a_checkpoint(config, two_transformers, section):
    spec = recognise(config, two_transformers=two_transformers)
    assert spec is not None and spec.preset_section == section


@pytest.mark.parametrize(
    ("config", "two_transformers"),
    [
        (WAN_1_3B, True),
        ({**WAN_1_3B, "_class_name": "WanVACETransformer3DModel"}, False),
        ({**WAN_1_3B, "num_layers": 32}, False),
        ({**WAN_14B, "in_channels": 33}, False),
        ({**COGVIDEOX, "num_attention_heads": 30, "num_layers": 30, "patch_size_t": None}, False),
        ({}, False),
    ],
    ids=["second-transformer", "other-class", "other-depth", "other-channels", "2b", "empty"],
)
def test_does_not_guess(config, two_transformers):
    assert recognise(config, two_transformers=two_transformers) is None


def test_recognises_the_built_in_model_as_diffusers_builds_it():
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=3, attention_head_dim=64, num_layers=4, ffn_dim=768, text_dim=96, freq_dim=128
    )
    assert recognise(transformer.config, two_transformers=False) is MODELS["tiny-wan"]
