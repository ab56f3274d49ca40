from dataclasses import replace
from pathlib import Path

import pytest

from psa_triton.models import MODELS
from psa_triton.tools.cli.commands import ModelOptions
from psa_triton.tools.cli.target import choose_source
from psa_triton.tools.generation.model_configs import checkout_model_configs, configured_models

SHIPPED = Path(__file__).parents[3] / "examples" / "configs" / "model_configs.py"


@pytest.fixture
def written(tmp_path):
    """Writes a `model_configs.py`."""

    def write(text):
        file = tmp_path / "model_configs.py"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_the_file_that_comes_along_changes_nothing_and_names_every_checkpoint():
    assert configured_models(SHIPPED) == MODELS
    text = SHIPPED.read_text(encoding="utf-8")
    assert all(f'"{key}"' in text for key, spec in MODELS.items() if spec.hub_id is not None)


def test_the_file_of_the_checkout_is_found():
    assert checkout_model_configs() == SHIPPED


def test_a_file_beside_an_installed_package_is_not_run(monkeypatch, tmp_path):
    file = tmp_path / "examples" / "configs" / "model_configs.py"
    file.parent.mkdir(parents=True)
    file.write_text("MODEL_CONFIGS = {}\n")
    monkeypatch.setattr("psa_triton.tools.generation.model_configs._CHECKOUT", tmp_path)
    assert checkout_model_configs() == file
    monkeypatch.setattr("psa_triton.tools.generation.model_configs._PACKAGE", tmp_path / "libraries" / "psa_triton")
    assert checkout_model_configs() is None


def test_without_a_file_the_registry_is_used():
    assert configured_models(None) == MODELS


def test_an_edited_setting_replaces_that_of_the_registry_and_no_other(written):
    file = written('WEIGHTS = "w"\nMODEL_CONFIGS = {"cogvideo_5b_lora": {"lora_path": WEIGHTS, "fps": 12}}\n')
    changed = replace(MODELS["cogvideo_5b_lora"], lora_path="w", fps=12)
    assert configured_models(file) == {**MODELS, "cogvideo_5b_lora": changed}


def test_the_command_line_comes_before_the_file_and_the_file_before_the_registry(written):
    file = written('MODEL_CONFIGS = {"cogvideo_5b_lora": {"lora_path": "edited", "model_id": "some/where"}}\n')
    edited = choose_source(ModelOptions(model="cogvideo_5b_lora"), configs=file)
    assert (edited.spec.lora_path, edited.location) == ("edited", "some/where")
    given = choose_source(
        ModelOptions(model="cogvideo_5b_lora", lora_path="given", model_path="else/where"), configs=file
    )
    assert (given.spec.lora_path, given.location) == ("given", "else/where")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL_CONFIGS = {", "could not be imported: SyntaxError"),
        ("1 / 0", "could not be imported: ZeroDivisionError"),
        ("CONFIGS = {}", "expected a dict MODEL_CONFIGS, got NoneType"),
        ('MODEL_CONFIGS = {"wan21_13b": {}}', r"unknown model 'wan21_13b'; did you mean 'wan21_1\.3b'"),
        ('MODEL_CONFIGS = {"wan21_14b": {"lora": "x"}}', "wan21_14b.lora: unknown key 'lora'; did you mean"),
        ('MODEL_CONFIGS = {"wan21_14b": {"width": "720"}}', "wan21_14b.width: expected a valid integer, got '720'"),
        ('MODEL_CONFIGS = {"wan21_14b": {"fps": 0}}', "wan21_14b.fps: expected greater than or equal to 1, got 0"),
        ('MODEL_CONFIGS = {"wan21_14b": "x"}', "wan21_14b: expected a mapping, got 'x'"),
    ],
    ids=["syntax", "raises", "no-dict", "model", "setting", "type", "range", "row"],
)
def test_a_mistake_in_the_file_is_named(text, message, written):
    with pytest.raises(ValueError, match=rf"model_configs\.py: {message}"):
        configured_models(written(text))
