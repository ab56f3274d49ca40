import json
import shutil
from contextlib import nullcontext

import pytest
from command_line import psa
from programs import TWO_PROCESSES, python

from psa_triton.tools.generation.processes import Processes
from psa_triton.tools.understanding import read_media

PRESET = "tiny-wan/psa_balanced"  # five warm-up steps
NO_WARM_UP = "CogVideo_5b/psa_4steps"


@pytest.fixture
def generate(pipeline_folder, tmp_path):
    """Runs `psa generate` on the small pipeline, into `tmp_path / "out" / "small-wan"`."""

    def run(*options, min_tokens="0"):
        size = ["--width", "64", "--height", "64", "--num_frames", "5", "--steps", "6", "--guidance-scale", "1"]
        few = [] if min_tokens is None else ["--min_tokens", min_tokens]
        return psa("generate", "--model", pipeline_folder, "--output_dir", tmp_path / "out", *size, *few, *options)

    return run


def names(folder):
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def test_a_prompt_becomes_a_video_with_its_sidecar(generate, tmp_path):
    result = generate("--prompt", "a red square moving left", "--attention_preset", PRESET, "--seed", "5")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out" / "small-wan") == ["video_0000.json", "video_0000.mp4"]
    video = read_media(tmp_path / "out" / "small-wan" / "video_0000.mp4", "video", num_frames=99)
    assert (video.frames.shape, video.fps) == ((5, 64, 64, 3), 16)
    sidecar = json.loads((tmp_path / "out" / "small-wan" / "video_0000.json").read_text())
    settings, cost = sidecar["settings"], sidecar["cost"]
    assert (settings["seed"], settings["num_inference_steps"], settings["attention"]["preset"]) == (5, 6, PRESET)
    assert settings["attention"]["config"]["warmup_steps"] == 5
    # One of six steps is sparse; the whole run is dense but for that.
    assert cost["run_density"] == pytest.approx((5 + cost["attention_density"]) / 6)
    assert cost["attention_density"] < cost["attention_density_with_estimation"] < 1
    assert sidecar["hardware"]["device"] == "cpu"
    assert "density" in result.output


def test_steps_and_layers_that_run_dense_are_in_the_sidecar(generate, tmp_path):
    options = ("--prompt", "a red square", "--attention_preset", NO_WARM_UP)
    result = generate(*options, "--dense_last_steps", "2", "--dense_layers", "1", "--max-error", "0.4")
    assert result.exit_code == 0, result.output
    assert "; measured error 0." in result.output
    sidecar = json.loads((tmp_path / "out" / "small-wan" / "video_0000.json").read_text())
    attention, cost = sidecar["settings"]["attention"], sidecar["cost"]
    assert (attention["dense_last_steps"], attention["dense_layers"], attention["min_tokens"]) == (2, [1], 0)
    assert cost["dense_reasons"] == ["dense layer", "last steps"]
    assert 0 < cost["measured_error"] <= 0.4
    # Of two layers in six steps, one layer was sparse in four.
    assert cost["run_density"] == pytest.approx((8 + 4 * cost["attention_density"]) / 12)
    changed = generate(*options, "--dense_last_steps", "2")
    assert changed.exit_code == 0, changed.output
    assert "video_0001.mp4: " in changed.output, "another video, which gets the next number"


@pytest.mark.parametrize(
    ("min_tokens", "least"), [(None, 1024), ("129", 129)], ids=["break-even of a CPU", "--min_tokens"]
)
def test_short_sequences_run_dense(min_tokens, least, generate, tmp_path):
    result = generate("--prompt", "a red square", "--attention_preset", NO_WARM_UP, min_tokens=min_tokens)
    assert result.exit_code == 0, result.output
    assert f"all of it dense (fewer than {least} tokens)" in result.output


def test_a_process_that_cannot_load_its_model_does_not_stop_the_others(generate, tmp_path, monkeypatch):
    def no_weights(*_, **__):
        raise OSError("the disk is gone")

    monkeypatch.setattr("psa_triton.tools.cli.generate.launched_processes", lambda: nullcontext(Processes(count=2)))
    monkeypatch.setattr("psa_triton.tools.cli.target.load_pipeline", no_weights)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\na blue ring\na green cross\n")
    result = generate("--prompt-file", prompts, "--dense")
    assert result.exit_code == 1
    assert result.output.splitlines()[:-1] == [
        "process 0 makes none of its videos: OSError: the disk is gone",
        "2 of 3 videos failed:",
        "  video_0000.mp4 (a red square): OSError: the disk is gone",
        "  video_0002.mp4 (a green cross): OSError: the disk is gone",
    ]


def test_new_requests_get_the_next_number_and_the_same_one_is_found_again(generate, tmp_path):
    """The second command of a newcomer: another prompt, and no other folder."""
    out = tmp_path / "out" / "small-wan"
    for number, options in enumerate((("a red square",), ("a blue ring",), ("a red square", "--seed", "7"))):
        result = generate("--prompt", *options, "--dense")
        assert result.exit_code == 0, result.output
        assert f"video_000{number}.mp4: " in result.output and "1 made, 0 skipped" in result.output
    again = generate("--prompt", "a blue ring", "--dense")
    assert "video_0001.mp4: finished before, skipped" in again.output
    made = [json.loads((out / f"video_000{number}.json").read_text())["settings"] for number in range(3)]
    assert [(x["prompt"], x["seed"]) for x in made] == [("a red square", 42), ("a blue ring", 42), ("a red square", 7)]
    assert len(names(out)) == 6

    assert generate("--prompt", "a green cross", "--dense", "--seed", "9", "--overwrite").exit_code == 0
    sidecar = json.loads((out / "video_0000.json").read_text())
    assert (sidecar["settings"]["prompt"], sidecar["settings"]["seed"]) == ("a green cross", 9)
    assert sidecar["settings"]["attention"]["config"] is None
    assert sidecar["cost"]["run_density"] == 1
    assert len(names(out)) == 6


def test_two_processes_share_the_prompts_and_make_what_one_makes(pipeline_folder, failing_prompt, tmp_path):
    """Five prompts, of which the fourth fails; sparse from the first step on."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"a red square\na blue ring\na green cross\n{failing_prompt}\na red ring\n", encoding="utf-8")
    small = ["--width", "64", "--height", "64", "--num_frames", "5", "--steps", "2", "--guidance-scale", "1"]
    small += ["--attention_preset", NO_WARM_UP, "--min_tokens", "0"]
    five_prompts = ["generate", "--model", str(pipeline_folder), "--prompt_file", str(prompts), *small]
    alone, shared = tmp_path / "alone" / "small-wan", tmp_path / "shared" / "small-wan"
    assert psa(*five_prompts, "--output_dir", alone.parent).exit_code == 1
    shared.mkdir(parents=True)
    for name in ("video_0001.mp4", "video_0001.json"):
        shutil.copy2(alone / name, shared / name)

    command = (*TWO_PROCESSES, "-m", "psa_triton.tools.cli.app", *five_prompts, "--output_dir", shared.parent)
    done = python(*command, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")

    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{shared / 'video_0001.mp4'}: finished before, skipped"
    assert sum("finished before" in line for line in lines) == 1, "only the main process tells"
    for index in (0, 2, 4):
        assert sum(line.startswith(f"{shared / f'video_000{index}.mp4'}: ") for line in lines) == 1, "each made once"
    assert lines[-3] == "1 of 4 videos failed:"
    assert lines[-2].startswith("  video_0003.mp4 (a red square going left): IndexError")
    assert lines[-1].startswith("3 made, 1 skipped, 1 failed; ")

    videos = sorted(file.name for file in alone.glob("*.mp4"))
    assert videos == [f"video_000{index}.mp4" for index in (0, 1, 2, 4)]
    assert sorted(file.name for file in shared.iterdir()) == sorted(file.name for file in alone.iterdir())
    for name in videos:
        assert (shared / name).read_bytes() == (alone / name).read_bytes()
        settings = [
            json.loads((folder / name).with_suffix(".json").read_text())["settings"] for folder in (alone, shared)
        ]
        assert settings[0] == settings[1]
        assert settings[0]["seed"] == 42 + int(name[-5])

    again = psa(*five_prompts, "--output_dir", shared.parent)
    assert again.output.count("finished before, skipped") == 4
    assert "0 made, 4 skipped, 1 failed; " in again.output
