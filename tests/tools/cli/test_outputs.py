"""What the commands leave behind when a disk is full, two of them write into one folder, or one is interrupted.

Each loads the small pipeline, most in this process; what is true of two processes is tried with two.
"""

import io
import os
import signal
import subprocess
import sys
import time
from itertools import count

import pytest
from command_line import psa
from programs import ENVIRONMENT
from rich.console import Console

from psa_triton.tools.cli.console import VideoProgress, make_console
from psa_triton.tools.files import held
from psa_triton.tools.understanding import read_media

SIZE = ("--width", "64", "--height", "64", "--guidance-scale", "1")
SPARSE = ("--attention-preset", "CogVideo_5b/psa_4steps")
WRITING = {
    "generate": ("--prompt", "a red square", "--dense", "--steps", "1"),
    "compare": ("--prompt", "a red square", *SPARSE, "--ceiling", "none", "--no-warm-up", "--steps", "1"),
    "inspect": (
        *("--prompt", "a red square", *SPARSE, "--num-inference-steps", "3", "--steps", "1", "--save-qkv"),
        *("--layers", "0", "--heads", "0", "--query-blocks", "1"),
    ),
    "tune": (
        *("--prompt", "a red square", "--attention-preset", "tiny-wan/psa_budget", "--warmup-steps", "0"),
        *("--steps", "1", "--query-blocks", "1"),
    ),
}
"""The commands that load a model and write, with what makes them quick."""


def line(command, model, out, *more, frames=5):
    """A command line that writes into the folder `out`."""
    to = ["--output", str(out / "my.yaml")] if command == "tune" else ["--output-dir", str(out)]
    return [command, "--model", str(model), *to, *SIZE, "--num-frames", str(frames), *WRITING[command], *more]


def start(arguments):
    command = [sys.executable, "-m", "psa_triton", *arguments]
    return subprocess.Popen(
        command, env=ENVIRONMENT | {"COLUMNS": "80"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def names(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


@pytest.fixture
def disk(mount_disk):
    return mount_disk("8m")


def fill(disk, *, leave):
    (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize - leave))


def no_model(*_, **__):
    raise AssertionError("the model was loaded")


@pytest.mark.parametrize("fault", ["full", "file"])
@pytest.mark.parametrize("command", [*WRITING, "bench"])
def test_a_folder_that_cannot_be_used_is_told_before_the_model_is_loaded(
    command, fault, pipeline_folder, disk, monkeypatch
):
    monkeypatch.setattr("psa_triton.tools.cli.target.load_pipeline", no_model)
    monkeypatch.setattr("psa_triton.tools.bench.measure.measure_scaling", no_model)
    out = disk if command == "tune" else disk / "out"
    if fault == "full":
        fill(disk, leave=8 << 10)
    else:
        out = disk / "file" / "out"
        (disk / "file").write_bytes(b"mine")
    before = names(disk)
    bench = ["bench", "--shape", "tiny-wan-1k", "--output-dir", str(out)]
    result = psa(*(bench if command == "bench" else line(command, pipeline_folder, out)))
    assert result.exit_code == 1, result.output
    (told,) = result.output.splitlines()
    assert told.startswith("error: output"), told
    assert str(out) in told and "[Errno" not in told
    expected = {"full": "of room for the results", "file": "is a file"}[fault]
    assert expected in told or (command == "tune" and fault == "file" and "there is no folder" in told)
    assert names(disk) == before


@pytest.mark.parametrize("command", WRITING)
def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half_done(command, pipeline_folder, disk, monkeypatch):
    """Wherever it is full: each time a little more fits, until all does."""
    out = disk if command == "tune" else disk / "out"
    whole = []
    for module in ("psa_triton.tools.files", "psa_triton.tools.generation.batch", "psa_triton.tools.cli.compare"):
        monkeypatch.setattr(f"{module}.check_room", lambda *_, **__: None)
    for room in (8, 100, 4000):
        (disk / "ballast").unlink(missing_ok=True)
        fill(disk, leave=room << 10)
        result = psa(*line(command, pipeline_folder, out, frames=17))
        (disk / "ballast").unlink()
        if result.exit_code == 0:
            whole = names(disk)
            break
        assert result.exit_code == 1
        assert "could not be written: no room: it needs" in result.output, result.output
        assert names(disk) == []
    assert whole, "4 MB are enough"
    assert not any(name.endswith((".part", ".lock")) for name in whole)
    assert room > 8, "some runs were short of room"


@pytest.mark.parametrize("command", ["compare", "inspect", "tune", "bench"])
def test_a_second_one_is_told_who_writes(command, pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("psa_triton.tools.cli.target.load_pipeline", no_model)
    monkeypatch.setattr("psa_triton.tools.bench.measure.measure_scaling", no_model)
    bench = ["bench", "--shape", "tiny-wan-1k", "--output-dir", str(tmp_path)]
    with held(tmp_path / "my.yaml" if command == "tune" else tmp_path):
        second = psa(*(bench if command == "bench" else line(command, pipeline_folder, tmp_path)))
    assert second.exit_code == 1
    assert f"is being written by process {os.getpid()} on " in second.output
    assert names(tmp_path) == []


def test_the_bar_shows_the_error_measured_so_far():
    screen = io.StringIO()
    with VideoProgress(Console(file=screen, force_terminal=True, width=120), 1) as progress:
        on_step = progress.start_video("video_0000.mp4", 4)
        on_step(1, None)
        on_step(2, 0.0834)
    assert "measured error 0.083" in screen.getvalue()


@pytest.fixture
def interrupted(monkeypatch):
    """Sends this process a signal at the end of a denoising step, counted over all videos of a run."""

    def at(stop, step):
        begin, ended = VideoProgress.start_video, count(1)

        def start_video(progress, name, steps):
            on_step = begin(progress, name, steps)

            def end_step(done, error):
                on_step(done, error)
                if next(ended) == step:
                    signal.raise_signal(stop)

            return end_step

        monkeypatch.setattr(VideoProgress, "start_video", start_video)

    return at


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda stop: stop.name)
def test_an_interrupted_batch_says_what_is_made_and_goes_on(stop, pipeline_folder, tmp_path, interrupted):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\na blue ring\na green cross\n")
    command = line("generate", pipeline_folder, tmp_path)
    command[command.index("--prompt") : command.index("--prompt") + 2] = ["--prompt-file", str(prompts)]
    out = tmp_path / pipeline_folder.name
    interrupted(stop, 2)
    before = signal.getsignal(stop)
    result = psa(*command)
    assert result.exit_code == 128 + stop
    assert result.stderr == (
        "interrupted: 1 of 3 videos made (video_0000.mp4); not made: 'a blue ring', 'a green cross'; the same command "
        f"goes on with these; files in {out}\n"
    )
    assert names(out) == ["video_0000.json", "video_0000.mp4"]
    assert read_media(out / "video_0000.mp4", "video").total_frames == 5
    assert signal.getsignal(stop) is before
    again = psa(*command)
    assert again.exit_code == 0 and "2 made, 1 skipped, 0 failed" in again.output


@pytest.mark.parametrize("command", ["compare", "inspect", "tune"])
def test_an_interrupt_leaves_nothing(command, pipeline_folder, tmp_path, interrupted):
    interrupted(signal.SIGINT, 3 if command == "inspect" else 1)  # inspect has drawn what it looks at by then
    result = psa(*line(command, pipeline_folder, tmp_path if command == "tune" else tmp_path / "out"))
    assert result.exit_code == 130, result.output
    expected = "0 of 1 cases made; not made: 'a red square'" if command == "compare" else "nothing was written"
    assert result.stderr.startswith(f"interrupted: {expected}; the same command ")
    assert result.stderr.count("\n") == 1
    assert names(tmp_path) == []


def test_ctrl_c_on_a_program(pipeline_folder, tmp_path):
    process = start(line("generate", pipeline_folder, tmp_path, "--steps", "1000"))
    lock = tmp_path / pipeline_folder.name / ".video_0000.mp4.lock"
    for _ in range(1200):
        if lock.exists():
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130, told
    assert told.startswith("interrupted: 0 of 1 videos made; not made: 'a red square'; the same command goes on")
    assert names(tmp_path) == []


def test_what_is_printed_is_what_is_meant(capsys):
    make_console().print("files in o:cat:b, [red] 1")
    assert capsys.readouterr().out == "files in o:cat:b, [red] 1\n"
