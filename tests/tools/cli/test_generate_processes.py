"""`psa generate` by several processes: each prompt once, and the videos of one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import psa

SOURCE = Path(__file__).parents[3] / "src"


@pytest.fixture
def options(pipeline_folder, failing_prompt, tmp_path):
    """Five prompts, of which the fourth fails; sparse from the first step on."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"a red square\na blue ring\na green cross\n{failing_prompt}\na red ring\n", encoding="utf-8")
    small = ["--width", "64", "--height", "64", "--num_frames", "5", "--steps", "2", "--guidance-scale", "1"]
    attention = ["--attention_preset", "CogVideo_5b/psa_4steps", "--min_tokens", "0"]
    return ["generate", "--model", str(pipeline_folder), "--prompt_file", str(prompts), *small, *attention]


def run_two_processes(options, folder):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*launch, "-m", "psa_triton.tools.cli.app", *options],
        cwd=folder,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_two_processes_share_the_prompts_and_make_what_one_makes(options, tmp_path):
    alone, shared = tmp_path / "alone" / "small-wan", tmp_path / "shared" / "small-wan"
    assert psa(*options, "--output_dir", alone.parent).exit_code == 1
    shared.mkdir(parents=True)
    for name in ("video_0001.mp4", "video_0001.json"):
        shutil.copy2(alone / name, shared / name)

    done = run_two_processes([*options, "--output_dir", str(shared.parent)], tmp_path)

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

    again = psa(*options, "--output_dir", shared.parent)
    assert again.output.count("finished before, skipped") == 4
    assert "0 made, 4 skipped, 1 failed; " in again.output
