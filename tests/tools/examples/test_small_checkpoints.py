"""Loading each row of the model table, on a small checkpoint of the same classes and config keys."""

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import save_lora
from small_pipelines import TEXT_DIM

from psa_triton.models import MODELS
from psa_triton.tools.generation import find_source, load_pipeline
from psa_triton.tools.generation.lora import find_lora

CPU = torch.device("cpu")
# key: (small checkpoint, class and settings of the scheduler at the default size)
TRAILING_DPM = ("CogVideoXDPMScheduler", {"timestep_spacing": "trailing", "snr_shift_scale": 1.0})
ROWS = {
    "cogvideo_5b": ("cogvideo_5b", *TRAILING_DPM),
    "cogvideo1.5_5b": ("cogvideo1.5_5b", *TRAILING_DPM),
    "cogvideo_5b_lora": ("cogvideo_5b", *TRAILING_DPM),
    "wan21_1.3b": ("wan21", "UniPCMultistepScheduler", {"flow_shift": 5.0, "use_flow_sigmas": True}),
    "wan21_14b": ("wan21", "UniPCMultistepScheduler", {"flow_shift": 5.0, "use_flow_sigmas": True}),
    "wan22_5b": ("wan22_5b", "UniPCMultistepScheduler", {"flow_shift": 5.0, "use_flow_sigmas": True}),
    "wan22_a14b": ("wan22_a14b", "UniPCMultistepScheduler", {"flow_shift": 3.0, "use_flow_sigmas": True}),
}


@pytest.fixture
def load(checkpoint):
    """Loads the small checkpoint of a row."""

    def run(key, *, dtype=torch.float32, device=CPU, lora=None):
        source = find_source(key, weights=str(checkpoint(ROWS[key][0])))
        spec = MODELS[key]
        return load_pipeline(source, device=device, dtype=dtype, width=spec.width, height=spec.height, lora=lora)

    return run


@pytest.mark.parametrize("key", ROWS)
def test_types_scheduler_and_memory_settings_are_those_of_the_table(key, load, monkeypatch):
    """An accelerator gets the whole model or the part at work."""
    spec, moved, cuda = MODELS[key], {}, torch.device("cuda")
    kind = getattr(diffusers, spec.pipeline)
    for name in ("enable_model_cpu_offload", "to"):
        monkeypatch.setattr(
            kind, name, lambda self, *given, name=name, **more: moved.update({name: (*given, *more.values())})
        )
    pipe = load(key, dtype=torch.bfloat16, device=cuda)
    assert type(pipe) is kind
    assert moved == {"enable_model_cpu_offload" if key.startswith("cogvideo") else "to": (cuda,)}
    assert (pipe.transformer.dtype, pipe.text_encoder.dtype) == (torch.bfloat16, torch.bfloat16)
    assert pipe.vae.dtype == (torch.float32 if key.startswith("wan") else torch.bfloat16)
    _, scheduler, settings = ROWS[key]
    assert type(pipe.scheduler).__name__ == scheduler
    assert {name: pipe.scheduler.config[name] for name in settings} == settings
    memory = (pipe.vae.use_tiling, pipe.vae.use_slicing)
    assert memory == ((True, True) if key.startswith("cogvideo") else (False, False))


def forward(pipe):
    generator = torch.Generator().manual_seed(0)
    rotary = pipe._prepare_rotary_positional_embeddings(64, 64, 2, CPU)
    with torch.no_grad():
        return pipe.transformer(
            hidden_states=torch.randn(1, 2, 16, 8, 8, generator=generator),
            encoder_hidden_states=torch.randn(1, 226, TEXT_DIM, generator=generator),
            timestep=torch.tensor([500]),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]


def test_a_lora_adds_the_product_of_its_two_matrices_to_each_layer(load, lora_file):
    with_lora = forward(load("cogvideo_5b_lora", lora=find_lora(str(lora_file))))
    plain = load("cogvideo_5b")
    without = forward(plain)
    weights = load_file(lora_file)
    for name, down in weights.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix("transformer.").removesuffix(".lora_A.weight")
            up = weights[name.replace("lora_A", "lora_B")]
            plain.transformer.get_submodule(layer).weight.data += up @ down
    assert (with_lora - without).abs().max() > 1e-3
    torch.testing.assert_close(with_lora, forward(plain), atol=1e-5, rtol=1e-4)


def test_a_lora_runs_in_the_type_of_the_weights(load, lora_file):
    pipe = load("cogvideo_5b_lora", dtype=torch.bfloat16, lora=find_lora(str(lora_file)))
    assert {weight.dtype for name, weight in pipe.transformer.named_parameters() if "lora" in name} == {torch.bfloat16}


@pytest.mark.parametrize("given", ["file", "folder", "folder above"])
def test_a_lora_is_found_by_its_file_or_a_folder(given, lora_file):
    path = {"file": lora_file, "folder": lora_file.parent, "folder above": lora_file.parents[1]}[given]
    lora = find_lora(str(path))
    assert lora.file == lora_file.resolve()
    assert lora.as_dict()["path"] == str(lora_file.resolve())
    assert len(lora.sha256) == 64


def test_a_lora_on_the_hub_is_fetched_and_named_by_its_place_there(lora_file, monkeypatch):
    asked = []
    monkeypatch.setattr("psa_triton.tools.generation.lora.model_info", asked.append)
    monkeypatch.setattr(
        "psa_triton.tools.generation.lora.hf_hub_download", lambda *args: asked.append(args) or lora_file
    )
    assert find_lora("GYP666/BLADE/some/file.safetensors").path == "GYP666/BLADE/some/file.safetensors"
    assert find_lora("GYP666/BLADE").path == "GYP666/BLADE/pytorch_lora_weights.safetensors"
    assert asked[:2] == ["GYP666/BLADE", ("GYP666/BLADE", "some/file.safetensors")]


def test_without_network_a_lora_fetched_before_is_used(lora_file, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("psa_triton.tools.generation.lora.try_to_load_from_cache", lambda *args: str(lora_file))
    assert find_lora("some/where").file == lora_file


def test_a_lora_that_cannot_be_fetched_comes_with_the_command_that_does(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"hf download nobody/nothing a/b\.safetensors --local-dir weights"):
        find_lora("nobody/nothing/a/b.safetensors")


def test_a_lora_for_another_model_is_refused(load, tmp_path):
    none = save_lora(tmp_path / "none")
    foreign = {name.replace("transformer.", "unet."): weight for name, weight in load_file(none).items()}
    save_file(foreign, none)
    with pytest.raises(ValueError, match="weights for none of the transformer's layers"):
        load("cogvideo_5b_lora", lora=find_lora(str(none)))


def test_weights_of_another_class_are_refused(checkpoint):
    folder = str(checkpoint("wan21"))
    with pytest.raises(ValueError, match="expected a CogVideoXPipeline as cogvideo_5b is, got a WanPipeline"):
        find_source("cogvideo_5b", weights=folder)
    with pytest.raises(ValueError, match="expected a CogVideoXPipeline"):
        find_source(folder, keys=["cogvideo_5b"])
    assert find_source(folder, keys=["wan21_14b"]).spec == replace(
        MODELS["wan21_14b"], hub_id=str(Path(folder).resolve())
    )
