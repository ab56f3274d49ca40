import logging
import shutil
from dataclasses import replace
from functools import partial
from unittest.mock import MagicMock

import diffusers
import pytest
import torch
import transformers
from diffusers import WanPipeline

from psa_triton.models import MODELS
from psa_triton.tools.builtin import LinearVideoCodec
from psa_triton.tools.generation import choose_dtype, find_source, load_pipeline
from psa_triton.tools.generation.loading import choose_device

CPU = torch.device("cpu")


def load(source, **changes):
    settings = {"device": CPU, "dtype": torch.float32, "width": 64, "height": 64}
    return load_pipeline(source, **settings | changes)


def test_a_folder_with_the_linear_codec_loads_and_saves_without_warnings(source, tmp_path, caplog, monkeypatch):
    for library in ("diffusers", "transformers"):
        monkeypatch.setattr(logging.getLogger(library), "propagate", True)
    first = load(source)
    first.save_pretrained(tmp_path / "again")
    load(find_source(str(tmp_path / "again")), dtype=torch.float16)  # which diffusers says no CPU runs
    second = load(find_source(str(tmp_path / "again")))
    assert type(second) is WanPipeline
    assert type(second.vae) is LinearVideoCodec
    for name in ("vae", "transformer", "text_encoder"):
        before, after = getattr(first, name).state_dict(), getattr(second, name).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(("width", "height", "shift"), [(1280, 720, 5.0), (832, 480, 3.0)])
def test_the_noise_schedule_follows_the_size(source, width, height, shift):
    pipe = load(replace(source, spec=MODELS["wan21_1.3b"]), width=width, height=height)
    assert type(pipe.scheduler).__name__ == "UniPCMultistepScheduler"
    assert pipe.scheduler.config.flow_shift == shift
    assert pipe.scheduler.config.use_flow_sigmas is True, "the rest is the checkpoint's"


def test_parts_come_from_their_repositories_and_branches(monkeypatch, tmp_path):
    asked = {}

    def record(where, *, name, **options):
        asked[name] = (where, options)
        return MagicMock()

    for key in ("framepack", "cosmos_predict2.5_2b"):
        spec = MODELS[key]
        for name in (spec.pipeline, *(kind for kind, *_ in spec.parts.values())):
            kind = getattr(diffusers, name, None) or getattr(transformers, name, None)
            if kind is None:
                pytest.skip(f"this diffusers has no {name}")
            monkeypatch.setattr(kind, "from_pretrained", partial(record, name=name))
        load(find_source(key))
    assert asked["HunyuanVideoFramepackTransformer3DModel"][0] == "lllyasviel/FramePackI2V_HY"
    assert asked["SiglipImageProcessor"] == ("lllyasviel/flux_redux_bfl", {"subfolder": "feature_extractor"})
    where, options = asked["HunyuanVideoFramepackPipeline"]
    assert where == "hunyuanvideo-community/HunyuanVideo"
    assert options.keys() >= {"transformer", "image_encoder", "feature_extractor"}
    where, options = asked["Cosmos2_5_PredictBasePipeline"]
    assert (where, options["revision"]) == ("nvidia/Cosmos-Predict2.5-2B", "diffusers/base/post-trained")
    elsewhere = MODELS["framepack"].with_weights(str(tmp_path))
    assert (elsewhere.hub_id, elsewhere.parts) == (str(tmp_path), {}), "a folder has everything"


def test_weights_that_cannot_be_fetched_are_an_error_that_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = replace(find_source("wan21_1.3b"), location="nobody-here/no-such-model")
    with pytest.raises(OSError, match=r"hf download nobody-here/no-such-model.*--model PATH"):
        load(source)


def test_a_damaged_folder_is_an_error_that_names_it(pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "damaged")
    for file in (folder / "transformer").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(OSError, match="damaged: the pipeline could not be loaded"):
        load(find_source(str(folder)))


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [("auto", "cpu", torch.float32), ("auto", "cuda", torch.bfloat16), ("float16", "cpu", torch.float16)],
)
def test_types(asked, device, expected):
    assert choose_dtype(asked, torch.device(device)) == expected


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="dtype: expected auto or one of float32, bfloat16, float16, got 'int8'"):
        choose_dtype("int8", CPU)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match=f"device: '{device}' cannot be used here"):
        choose_device(device)
