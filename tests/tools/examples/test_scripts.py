"""The scripts of `examples/inference`, run as a user would, on small checkpoints."""

import json
import shutil

import numpy as np
import pytest
from command_line import psa
from programs import ROOT, load_script, python
from typer.main import get_command
from typer.testing import CliRunner

from psa_triton.presets import shipped_presets
from psa_triton.tools.understanding import read_media
from psa_triton.tools.video import encode_video

SCRIPTS = ["cogvideo/cogvideo_5b.py", "wan21/wan21_1.3b.py", "wan21/wan21_14b.py", "wan22/wan22_5b.py"]
SCRIPTS += ["wan22/wan22_a14b.py"]
PROMPT = ("--prompt", "a red square moving left")
OPTIONS = [
    *("--prompt", "--prompt_file", "--use_psa", "--attention_preset", "--num_inference_steps", "--output_dir"),
    *("--seed", "--no_warmup", "--no_timestamp", "--batch_size", "--verbose", "--model", "--lora_path"),
    *("--width", "--height", "--num_frames", "--negative_prompt"),
    *("--min_tokens", "--dense_last_steps", "--dense_layers"),
]

# key: (script, small checkpoint, preset, guidance, fps, size, steps: one more than the preset's warm-up)
ROWS = {
    "cogvideo_5b": ("cogvideo/cogvideo_5b.py", "cogvideo_5b", "CogVideo_5b/psa_balanced", 6.0, 8, (128, 128, 9), 16),
    "cogvideo1.5_5b": (
        *("cogvideo/cogvideo_5b.py", "cogvideo1.5_5b", "CogVideo1.5_5b/psa_balanced", 6.0, 8),
        *((64, 64, 17), 16),
    ),
    "wan21_1.3b": ("wan21/wan21_1.3b.py", "wan21", "Wan2.1_1.3b/psa_balanced", 5.0, 16, (128, 128, 17), 16),
    "wan22_5b": ("wan22/wan22_5b.py", "wan22_5b", "Wan2.2_5B/psa_balanced", 5.0, 24, (128, 128, 17), 16),
    "wan22_a14b": ("wan22/wan22_a14b.py", "wan22_a14b", "Wan2.2_A14B/psa_balanced", 4.0, 16, (64, 64, 17), 13),
}
COGVIDEO = ROWS["cogvideo_5b"][0]


def size(width, height, num_frames):
    return ("--width", str(width), "--height", str(height), "--num_frames", str(num_frames))


@pytest.fixture
def run(tmp_path):
    """Runs a script with a prompt, into `tmp_path / "out"`."""

    def invoke(script, *options, prompt=PROMPT, examples=None):
        app = load_script((examples or ROOT / "examples") / "inference" / script).app
        return CliRunner().invoke(app, [*prompt, "--output_dir", str(tmp_path / "out"), *options])

    return invoke


@pytest.fixture
def quick_lora(checkpoint, lora_file):
    """Options for the 4-step model on small weights: no warm-up of any kind, sparse though there are few tokens."""
    weights = ("--model_path", str(checkpoint("cogvideo_5b")), "--lora_path", str(lora_file.parents[1]))
    how = ("--min_tokens", "0", "--no_warmup", "--no_timestamp")
    return ("--model", "cogvideo_5b_lora", *weights, *size(96, 96, 9), *how)


def sidecar(video):
    return json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_can_be_written_with_a_dash_and_an_underscore(script):
    app = load_script(ROOT / "examples" / "inference" / script).app
    known = {name for option in get_command(app).params for name in (*option.opts, *option.secondary_opts)}
    assert {option.replace("_", "-") for option in OPTIONS} <= known
    for option in ("--no-timestamp", "--no_timestamp"):
        # The option before it has been understood if this one is complained of.
        result = CliRunner().invoke(app, [option, "--no-such-option"])
        assert result.exit_code == 2
        assert "no-such-option" in result.stderr


@pytest.mark.parametrize("key", ROWS)
def test_a_script_makes_its_models_videos_with_psa(key, run, checkpoint, tmp_path):
    script, small, preset, guidance, fps, pixels, steps = ROWS[key]
    weights = ("--model", key, "--model_path", str(checkpoint(small)))
    how = ("--num_inference_steps", str(steps), "--use_psa", "--min_tokens", "0", "--no_warmup")
    result = run(script, *weights, *size(*pixels), *how)
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "out" / key).iterdir()
    assert len(folder.name) == len("20251204_120000")
    assert sorted(file.name for file in folder.iterdir()) == ["video_0000.json", "video_0000.mp4"]
    video = read_media(folder / "video_0000.mp4", "video", num_frames=99)
    assert (video.frames.shape, video.fps) == ((pixels[2], pixels[1], pixels[0], 3), fps)
    settings, cost = sidecar(folder / "video_0000.mp4")["settings"], sidecar(folder / "video_0000.mp4")["cost"]
    assert settings["attention"]["preset"] == preset
    assert (settings["model"], settings["weights"], settings["lora"]) == (key, str(checkpoint(small)), None)
    assert (settings["seed"], settings["guidance_scale"]) == (42, guidance)
    assert settings["guidance_scale_2"] == (3.0 if key == "wan22_a14b" else None)
    assert 0 < cost["attention_density"] < 1
    assert cost["dense_reasons"] == ["warm-up"]
    assert result.output.endswith(f"files in {folder}\n")


def test_a_folder_alone_is_run_with_the_scripts_own_settings(run, checkpoint, tmp_path):
    options = (*size(64, 64, 5), "--num_inference_steps", "1", "--no_timestamp")
    result = run("wan21/wan21_14b.py", "--model", str(checkpoint("wan21")), *options)
    assert result.exit_code == 0, result.output
    found = sidecar(tmp_path / "out" / "wan21" / "video_0000.mp4")
    assert found["settings"]["guidance_scale"] == 5.0
    assert found["settings"]["attention"]["preset"] == "dense", "scripts are dense unless asked otherwise"
    assert found["cost"]["dense_reasons"] == ["dense preset"]


def test_the_4_step_lora_as_a_program(quick_lora, lora_file, tmp_path):
    script = ROOT / "examples" / "inference" / COGVIDEO
    done = python(script, *PROMPT, *quick_lora, "--use_psa", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    line, summary = done.stdout.splitlines()
    assert line.startswith("outputs/cogvideo_5b_lora/video_0000.mp4: ")
    assert summary.startswith("1 made, 0 skipped, 0 failed; ")
    found = sidecar(tmp_path / "outputs" / "cogvideo_5b_lora" / "video_0000.mp4")
    assert found["settings"]["lora"]["path"] == str(lora_file.resolve())
    assert found["settings"]["attention"]["preset"] == "CogVideo_5b/psa_4steps"
    assert (found["settings"]["num_inference_steps"], found["settings"]["guidance_scale"]) == (4, 1.0)
    assert found["cost"]["dense_reasons"] == [], "the 4-step preset has no dense warm-up"


def test_psa_generate_is_the_same_thing(run, quick_lora, tmp_path, monkeypatch):
    made = []

    def encode(frames, fps, audio):
        made.append(frames)
        return encode_video(frames, fps=fps)

    monkeypatch.setattr("psa_triton.tools.generation.batch.encode", encode)
    assert run(COGVIDEO, *quick_lora, "--use_psa").exit_code == 0
    result = psa("generate", *PROMPT, *quick_lora, "--output_dir", tmp_path / "psa")
    assert result.exit_code == 0, result.output
    first, second = (tmp_path / folder / "cogvideo_5b_lora" / "video_0000.mp4" for folder in ("out", "psa"))
    assert sidecar(first)["settings"] == sidecar(second)["settings"]
    np.testing.assert_array_equal(*made)


def test_a_lora_path_edited_into_model_configs_works_for_script_and_command(
    run, quick_lora, lora_file, tmp_path, monkeypatch
):
    examples = shutil.copytree(ROOT / "examples", tmp_path / "checkout" / "examples")
    file = examples / "configs" / "model_configs.py"
    before = '"GYP666/BLADE/cogvideox-5b-psa-lora/pytorch_lora_weights.safetensors"'
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1
    file.write_text(text.replace(before, repr(str(lora_file.parents[1]))), encoding="utf-8")
    lora = quick_lora.index("--lora_path")
    options = quick_lora[:lora] + quick_lora[lora + 2 :]

    assert run(COGVIDEO, *options, examples=examples).exit_code == 0
    monkeypatch.setattr("psa_triton.tools.generation.model_configs._CHECKOUT", tmp_path / "checkout")
    result = psa("generate", *PROMPT, *options, "--output_dir", tmp_path / "psa")
    assert result.exit_code == 0, result.output
    for folder in ("out", "psa"):
        video = tmp_path / folder / "cogvideo_5b_lora" / "video_0000.mp4"
        assert sidecar(video)["settings"]["lora"]["path"] == str(lora_file.resolve())


MY_PRESET = """
    my_custom_preset:
      type: psa
      description: "My custom PSA configuration"
      use_rearrange: true
      block_size: {m: 128, n: 64, tile_n: 32}
      mask_ratios: {1: [0.0, 0.5], 2: [0.5, 0.7], 4: [0.7, 0.9], 0: [0.9, 1.0]}
      mask_mode: thresholdbound
      warmup_steps: 1
"""


@pytest.mark.parametrize("how", ["edited in place", "--config"])
def test_a_preset_added_to_the_yaml_is_used(how, run, quick_lora, tmp_path, monkeypatch):
    head, section, rest = shipped_presets().read_text(encoding="utf-8").partition("\nCogVideo_5b:\n")
    above, key, below = rest.partition("  attention_configs:\n")
    file = tmp_path / "attention_config.yaml"
    file.write_text(f"{head}{section}{above}{key}{MY_PRESET}{below}", encoding="utf-8")
    options = ("--config", str(file))
    if how == "edited in place":
        monkeypatch.setattr("psa_triton.presets.loading.shipped_presets", lambda: file)
        options = ()
    result = run(COGVIDEO, *quick_lora, "--use_psa", "--attention_preset", "my_custom_preset", *options)
    assert result.exit_code == 0, result.output
    found = sidecar(tmp_path / "out" / "cogvideo_5b_lora" / "video_0000.mp4")
    assert found["settings"]["attention"]["preset"] == "CogVideo_5b/my_custom_preset"
    assert found["settings"]["attention"]["config"]["block_n"] == 64
    assert found["cost"]["dense_reasons"] == ["warm-up"]


def test_prompts_of_a_file_in_batches_with_a_seed_each(run, quick_lora, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\n\na blue square\na square moving left\n", encoding="utf-8")
    options = (*quick_lora[:-2], "--no_timestamp", "--batch_size", "2", "--seed", "7", "--negative_prompt", "blue")
    result = run(COGVIDEO, *options, prompt=("--prompt_file", str(prompts)))
    assert result.exit_code == 0, result.output
    found = [sidecar(tmp_path / "out" / "cogvideo_5b_lora" / f"video_000{index}.mp4") for index in range(3)]
    assert [each["settings"]["seed"] for each in found] == [7, 8, 9]
    assert [each["settings"]["prompt"] for each in found] == ["a red square", "a blue square", "a square moving left"]
    assert [each["cost"]["videos"] for each in found] == [2, 2, 1]
    assert "3 made, 0 skipped, 0 failed; " in result.output


def test_verbose_tells_of_every_sparse_call_and_settings_stay_the_same(run, quick_lora):
    result = run(COGVIDEO, *quick_lora, "--use_psa", "--verbose")
    assert result.exit_code == 0, result.output
    told = [line for line in result.output.splitlines() if line.startswith("transformer layer ")]
    assert len(told) == 2 * 4, "two layers, four steps"
    assert all("density" in line for line in told)
    assert "finished before, skipped" in run(COGVIDEO, *quick_lora, "--use_psa").output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "wan21_14b"), "unknown model 'wan21_14b'. Known: cogvideo1.5_5b"),
        (("--config", "own.yaml"), "expected --use-psa with --attention-preset or --config"),
    ],
    ids=["a model of another script", "dense"],
)
def test_a_mistake_is_one_line(options, message, run):
    result = run(COGVIDEO, *options)
    assert result.exit_code == 1 and message in result.output
    assert result.output.startswith("error: ") and result.output.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_weights_and_network_a_script_says_what_to_get(script, run, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    result = run(script)
    assert result.exit_code == 1
    assert result.output.startswith("error: the weights of ")
    assert "hf download " in result.output
    assert result.output.count("\n") == 1
