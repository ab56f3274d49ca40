import json

import pytest
import torch
from command_line import psa
from safetensors.torch import save_file

PRESET = "tiny-wan/psa_balanced"  # five steps of warm-up
SMALL = ("--width", "64", "--height", "64", "--num-frames", "17", "--guidance-scale", "1")


def data_of(folder):
    return json.loads((folder / "inspect.json").read_text())


@pytest.fixture(scope="module")
def generated(pipeline_folder, tmp_path_factory):
    """Both layers and the second head of the small pipeline, in one step of two sparse ones, with q, k, v."""
    out = tmp_path_factory.mktemp("inspect") / "out"
    options = ("--num-inference-steps", "7", "--layers", "0-1", "--heads", "1", "--steps", "6", "--save_qkv")
    model = ("--model", pipeline_folder, "--prompt", "a red square", "--preset", PRESET)
    return out, psa("inspect", *model, *SMALL, *options, "--output_dir", out)


def test_layers_of_a_generation_become_pictures_numbers_and_tensors(generated):
    out, result = generated
    assert result.exit_code == 0, result.output
    places = [f"layer_0{layer}_step_06" for layer in (0, 1)]
    files = [*(f"{place}_head_01.png" for place in places), *(f"qkv_{place}.safetensors" for place in places)]
    assert sorted(file.name for file in out.iterdir()) == sorted([*files, "inspect.json"])
    data = data_of(out)
    assert data["settings"]["prompt"] == "a red square"
    assert {"versions", "hardware", "command", "date"} <= data.keys()
    assert [call["place"] for call in data["calls"]] == [{"layer": 0, "step": 6}, {"layer": 1, "step": 6}]
    for call in data["calls"]:
        (head,) = call["heads"]
        assert (call["grid"], head["head"]) == ([5, 8, 8], 1)
        assert 0 < head["density"] < 1 and 0 < head["error"] < 1
    assert "% of pairs at 1/2/4/8/0" in result.output and "recall" in result.output


def test_saved_tensors_show_the_same(generated, tmp_path):
    """The preset and the grid come from the file."""
    out, _ = generated
    saved = out / "qkv_layer_01_step_06.safetensors"
    result = psa("inspect", "--qkv", saved, "--heads", "0,1", "--output_dir", tmp_path)
    assert result.exit_code == 0, result.output
    data = data_of(tmp_path)
    assert data["settings"]["qkv"] == saved.name and data["settings"]["attention"]["preset"] == PRESET
    (call,) = data["calls"]
    before = data_of(out)["calls"][1]["heads"][0]
    again = call["heads"][1]
    assert again["density"] == before["density"] and again["error"] == pytest.approx(before["error"], rel=1e-4)
    assert again["levels"] == before["levels"]
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["head_00.png", "head_01.png"]


@pytest.fixture
def file(tmp_path):
    """A batch of two over 96 tokens, without values."""
    generator = torch.Generator().manual_seed(3)
    path = tmp_path / "made.safetensors"
    save_file({name: torch.randn(2, 2, 96, 16, generator=generator) for name in "qk"}, path)
    return path


def test_every_entry_of_a_batch_is_looked_at(file, tmp_path):
    options = ("--preset", PRESET, "--grid", "3,4,8", "--heads", "0")
    result = psa("inspect", "--qkv", file, *options, "--output_dir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    first, second = data_of(tmp_path / "out")["calls"]
    assert (first["place"], second["place"]) == ({"entry": 0}, {"entry": 1})
    assert first["heads"][0]["error"] is None and first["heads"][0]["levels"] != second["heads"][0]["levels"]
    assert (tmp_path / "out" / "entry_01_head_00.png").is_file()


def test_layers_that_run_dense_are_named(pipeline_folder, tmp_path):
    presets, out = tmp_path / "presets.yaml", tmp_path / "out"
    table = "budget_table: [{start: 0, budgets: [1.0, 0.3]}]"
    presets.write_text(f"tiny-wan:\n  attention_configs:\n    half: {{type: psa, mask_mode: budget, {table}}}\n")
    model = ("--model", pipeline_folder, "--prompt", "a red square", "--config", presets, "--preset", "tiny-wan/half")
    steps = ("--num-inference-steps", "2", "--steps", "0,1", "--layers", "0-1", "--heads", "0")
    result = psa("inspect", *model, *SMALL, *steps, "--output_dir", out)
    assert result.exit_code == 0, result.output
    for step in (0, 1):
        assert f"layer 0 runs dense in step {step}: there is nothing to look at" in result.output
    assert [call["place"] for call in data_of(out)["calls"]] == [{"layer": 1, "step": step} for step in (0, 1)]
