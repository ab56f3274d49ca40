import json

import pytest
from command_line import psa
from PIL import Image

from psa_triton.presets import load_preset, load_presets_file, shipped_presets

BASE = "tiny-wan/psa_budget"
SMALL = ("--width", "64", "--height", "64", "--num_frames", "17", "--guidance-scale", "1", "--steps", "4")
PROMPT = ("--prompt", "a red square moving left")
FAST = ("--parts", "2", "--query-blocks", "2", "--warmup-steps", "1")


@pytest.fixture
def tune(pipeline_folder, tmp_path):
    """Runs `psa tune` on the small pipeline, whose presets are the built-in model's, into `tmp_path / "my.yaml"`."""

    def run(*options, output=tmp_path / "my.yaml"):
        return psa("tune", "--model", pipeline_folder, "--attention-preset", BASE, "--output", output, *options)

    return run


def test_from_prompts_to_a_preset_to_a_video(tune, pipeline_folder, tmp_path):
    result = tune(*PROMPT, "--prompt", "a blue ring", "--budget", "0.3", *SMALL, *FAST)
    assert result.exit_code == 0, result.output
    for words in ("Error by budget", "layer 1", "one budget of 0.", "1 of 4 steps dense", " s in all"):
        assert words in result.output
    file = tmp_path / "my.yaml"
    tuned = load_preset("tiny-wan", "psa_tuned", file)
    assert tuned is not None
    assert [(row.start, len(row.budgets)) for row in tuned.budget_table] == [(0.0, 2), (0.375, 2)]
    assert tuned.budget == pytest.approx(0.3, abs=0.01)
    assert tuned.warmup_steps == 1
    assert list(load_presets_file(file).sections) == ["tiny-wan"]
    with Image.open(tmp_path / "my_psa_tuned.png") as picture:
        assert picture.width > 1000
    written = file.read_bytes(), (tmp_path / "my_psa_tuned.png").read_bytes()
    assert tune(*PROMPT, "--prompt", "a blue ring", "--budget", "0.3", *SMALL, *FAST).exit_code == 0
    assert (file.read_bytes(), (tmp_path / "my_psa_tuned.png").read_bytes()) == written

    model = ["--model", pipeline_folder, "--config", file, "--attention-preset", "tiny-wan/psa_tuned"]
    made = psa("generate", *model, *PROMPT, *SMALL, "--output-dir", tmp_path / "videos")
    assert made.exit_code == 0, made.output
    (sidecar,) = (tmp_path / "videos").rglob("video_0000.json")
    config = json.loads(sidecar.read_text())["settings"]["attention"]["config"]
    assert config["budget_table"][1]["budgets"] == list(tuned.budget_table[1].budgets)


def test_saved_tensors_are_tuned_on(tune, pipeline_folder, tmp_path):
    look = ["inspect", "--model", pipeline_folder, "--preset", "tiny-wan/psa_timing", *PROMPT, *SMALL]
    saved = tmp_path / "inspect"
    choice = ("--layers", "0-1", "--steps", "1,3", "--heads", "0", "--query-blocks", "0", "--save-qkv")
    assert psa(*look, *choice, "--output-dir", saved).exit_code == 0
    files = [option for file in sorted(saved.glob("*.safetensors")) for option in ("--qkv", file)]
    to = ["--output", tmp_path / "my.yaml", "--warmup-steps", "1"]
    without_steps = psa("tune", *files, *to)
    assert without_steps.exit_code == 1
    assert "num_inference_steps: expected it" in without_steps.output
    result = psa("tune", "--qkv", saved, *to, "--steps", 4, "--target-error", 0.2)
    assert result.exit_code == 0, result.output
    assert "Preset tiny-wan/psa_tuned" in result.output
    tuned = load_preset("tiny-wan", "psa_tuned", tmp_path / "my.yaml")
    assert tuned is not None
    assert [row.start for row in tuned.budget_table] == [0.0, 0.375]
    alone = psa("tune", *files[:2], *to, "--steps", 4, "--preset-name", "other")
    assert alone.exit_code == 0, alone.output
    assert load_preset("tiny-wan", "psa_tuned", tmp_path / "my.yaml") == tuned


def test_a_check_makes_the_video(tune):
    result = tune(*PROMPT, "--target-speedup", "1.8", "--check", *SMALL, *FAST)
    assert result.exit_code == 0, result.output
    assert "1.80 times less work" in result.output
    assert "PSNR to dense, dB" in result.output


def test_the_shipped_file_is_refused_before_the_work_starts(tune):
    before = shipped_presets().read_bytes()
    result = tune(*PROMPT, *SMALL, *FAST, output=shipped_presets())
    assert result.exit_code == 1
    assert "never written" in result.output
    assert "Error by budget" not in result.output
    assert shipped_presets().read_bytes() == before
