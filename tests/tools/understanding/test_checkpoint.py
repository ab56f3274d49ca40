import json
import shutil
from pathlib import Path

import pytest
import torch
from small_qwen import CHAT_TEMPLATE, CONTEXT

from psa_triton.tools.understanding import find_checkpoint


@pytest.fixture
def copy(qwen_folder, tmp_path):
    return Path(shutil.copytree(qwen_folder, tmp_path / "copy"))


def test_a_folder(qwen_folder):
    checkpoint = find_checkpoint(str(qwen_folder))
    assert (checkpoint.name, checkpoint.folder) == (str(qwen_folder), qwen_folder)
    assert checkpoint.context == CONTEXT
    model = checkpoint.load_weights(device=torch.device("cpu"), dtype=torch.bfloat16)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_chat_template_in_a_file_of_its_own(copy):
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        find_checkpoint(str(copy))
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    assert find_checkpoint(str(copy)).tokenizer.chat_template == CHAT_TEMPLATE


def test_no_folder():
    with pytest.raises(FileNotFoundError, match="model: there is no folder /no/such/folder, nor is it"):
        find_checkpoint("/no/such/folder")


@pytest.mark.parametrize("model", ["qwen2.5-vl-7b", "some/model"])
def test_a_hub_model_without_network(monkeypatch, tmp_path, model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub_id = "Qwen/Qwen2.5-VL-7B-Instruct" if model == "qwen2.5-vl-7b" else model
    with pytest.raises(OSError, match=f"model: {hub_id} is not on this machine .* run `hf download {hub_id}`"):
        find_checkpoint(model)


def test_a_hub_model_from_the_cache(monkeypatch, qwen_folder, tmp_path):
    """As `hf download some/model` leaves it: files under the commit that `main` names."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    commit = "0123456789012345678901234567890123456789"
    shutil.copytree(qwen_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    checkpoint = find_checkpoint("some/model")
    assert checkpoint.name == "some/model"
    assert checkpoint.load_weights(device=torch.device("cpu"), dtype=torch.float32).num_parameters() > 0


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"expected a folder as transformers saves it, .* no .*config\.json"),
        ("config.json", "{", "copy cannot be loaded: "),
        ("config.json", '{"model_type": "gpt2"}', "expected one of qwen2_5_vl, qwen2_vl, got the gpt2 "),
        ("preprocessor_config.json", None, "image processor"),
        ("tokenizer.json", None, "copy cannot be loaded: .*tokenizer"),
        ("tokenizer.json", "{", "copy cannot be loaded: "),
        ("model.safetensors", None, "copy cannot be loaded: .*model.safetensors"),
        ("model.safetensors", "half", "copy cannot be loaded: "),
    ],
)
def test_a_part_that_is_missing_damaged_or_of_another_model(copy, file, content, message):
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content)
    with pytest.raises((OSError, ValueError), match=message) as error:
        find_checkpoint(str(copy)).load_weights(device=torch.device("cpu"), dtype=torch.float32)
    assert "\n" not in str(error.value)
