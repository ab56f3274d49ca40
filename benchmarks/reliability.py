"""What is left when things go wrong, by the real commands on the built-in model.

`python benchmarks/reliability.py kill=20` runs one check at a size, without names all at their full sizes. Each says
what it tried, how often, and what was wrong; the exit code is 1 if anything was.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from harness import Run, heading, options, table
from typer.testing import CliRunner

from psa_triton import apply_psa, load_preset
from psa_triton.presets import load_presets_file
from psa_triton.tools.cli.app import app
from psa_triton.tools.generation import choose_attention, find_source, generate_video, load_pipeline, make_requests
from psa_triton.tools.understanding import read_media

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SMALL = ["--width", "96", "--height", "96", "--num-frames", "9", "--steps", "2", "--guidance-scale", "1"]
SPARSE = ["--attention-preset", "psa_budget", "--min-tokens", "0"]
PROMPTS = [f"a {c} {s} moving {d}" for c in ("red", "blue") for s in ("square", "ring") for d in ("left", "up")]

Extras = dict[str, Any]
"""What else is worth telling of a check, and `tried`, if that is not its size."""


def fuzz(size: int, folder: Path, wrong: list[str]) -> Extras:
    """Random calls of the operator, against the definition in float64."""
    done = python("tests/test_fuzz.py", "--cases", str(size))
    *found, last = done.stdout.splitlines() or [done.stderr[-300:]]
    wrong += found if last == f"{size} cases, {len(found)} wrong" else [*found, last]
    return {}


def inputs(size: int, folder: Path, wrong: list[str]) -> Extras:
    """Mistakes in commands and files: each gets one clear error, and nothing is written. The suite has them."""
    of_commands = [f"tests/tools/cli/test_{name}.py" for name in ("mistakes", "options", "presets")]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_malformed.py", *of_commands)
    passed = re.search(r"(\d+) passed", done.stdout)
    wrong += re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE)
    tried = len(wrong) + (int(passed[1]) if passed else 0)
    if tried < size:
        wrong.append(f"{tried} are there, {size} were asked for")
    return {"tried": tried}


def kill(size: int, folder: Path, wrong: list[str]) -> Extras:
    """SIGKILL at random moments of a batch of eight; what is there must be whole, and the rest must come as ever."""
    draw, killed, command = random.Random(0), 0, generating(PROMPTS)
    duration = psa(*command, str(folder / "whole"))
    expected = videos(folder / "whole")
    for index in range(size):
        out = folder / str(index)
        code, _ = interrupted(signal.SIGKILL, draw.uniform(0.3, 1) * duration, *command, str(out))
        killed += code == -signal.SIGKILL
        wrong += [f"{index}: {fault}" for fault in half_done(out)]
        psa(*command, str(out))
        if videos(out) != expected:
            wrong.append(f"{index}: after going on, videos are missing or other bytes")
    return {"killed in time": killed, "videos": len(expected)}


def disk(size: int, folder: Path, wrong: list[str]) -> Extras:
    """The disk is full at the first, the second, ... write of each command, until that has no more of them."""
    guided = ["--prompt", PROMPTS[0], *SMALL[:-4]]
    commands = {
        "generate": ["--prompt", PROMPTS[0], "--prompt", PROMPTS[1], *SMALL, *SPARSE],
        "compare": ["--prompt", PROMPTS[0], *SMALL, "--ceiling", "none", "--no-warm-up"],
        "inspect": [*guided, "--layers", "0", "--heads", "0", "--save-qkv"],
        "tune": [*guided, "--steps", "2", "--warmup-steps", "0", "--query-blocks", "1"],
    }
    tried = 0
    for command, words in commands.items():
        for full_at in range(1, size + 1):
            out = folder / f"{command}_{full_at}"
            out.mkdir()
            to = ["--output", f"{out}/my.yaml"] if command == "tune" else ["--output-dir", f"{out}/out"]
            with full_disk(full_at) as writes:
                result = CliRunner().invoke(app, [command, *words, *to])
            if len(writes) < full_at:
                if result.exit_code != 0:
                    wrong.append(f"{command}, with room: {result.output[-200:]}")
                break
            tried += 1
            faults = half_done(out)
            if result.exit_code != 1 or "could not be written" not in result.output:
                faults.append(f"exit code {result.exit_code}: {result.output[-200:]}")
            wrong += [f"{command}, write {full_at}: {fault}" for fault in faults]
    return {"tried": tried}


def folder(size: int, folder: Path, wrong: list[str]) -> Extras:
    """Two processes with the same eight prompts into one folder at once."""
    for index in range(size):
        out = folder / str(index)
        for process in [start(*generating(PROMPTS), str(out)) for _ in range(2)]:
            told, _ = process.communicate()
            # What the other one makes is no video of its own: it says so, and nothing else may fail.
            failed = re.findall(r"^  video_.*", told, re.MULTILINE)
            strange = [line for line in failed if not re.search("(made|written) by (another )?process", line)]
            if strange or process.returncode != bool(failed):
                wrong.append(f"{index}: exit code {process.returncode}: {strange or told[-300:]}")
        wrong += [f"{index}: {fault}" for fault in half_done(out)]
        made = sorted(prompt for _, prompt in videos(out).values())
        if made != sorted(PROMPTS):
            wrong.append(f"{index}: expected each of {len(PROMPTS)} prompts once, got {made}")
    return {}


def tune(size: int, folder: Path, wrong: list[str]) -> Extras:
    """Interrupts (SIGINT) at random moments of `psa tune` leave no file, or a whole one."""
    words = [*SMALL[:-4], "--steps", "4", "--warmup-steps", "0", "--query-blocks", "2"]
    draw, command = random.Random(0), ["tune", "--prompt", PROMPTS[0], *words, "--output"]
    duration = psa(*command, f"{folder}/whole.yaml")
    for index in range(size):
        file = folder / str(index) / "my.yaml"
        file.parent.mkdir()
        code, told = interrupted(signal.SIGINT, draw.uniform(0.4, 1) * duration, *command, str(file))
        if code not in (0, 130, -signal.SIGINT):  # the last: before anything is loaded
            wrong.append(f"{index}: exit code {code}: {told[-200:]}")
        left = sorted(path.name for path in file.parent.iterdir())
        if left not in ([], ["my.yaml", "my_psa_tuned.png"]) or (code == 0 and not left):
            wrong.append(f"{index}: exit code {code}, left {left}")
        elif left:  # also where the interrupt came when all was written
            load_presets_file(file)
    return {}


def memory(size: int, folder: Path, wrong: list[str]) -> Extras:
    """Videos in one process: its memory after the tenth, and after the last."""
    source, pipe = built_in()
    attention, sizes = choose_attention(source, "psa_refresh"), []
    for request in make_requests(source, [PROMPTS[i % 8] for i in range(size)], seed=0, settings=settings(steps=4)):
        generate_video(pipe, request, attention)
        sizes.append(resident())
    warm, last = sizes[min(9, size - 1)], sizes[-1]
    if (growth := (last - warm) >> 20) > 32:
        wrong.append(f"grew by {growth} MiB")
    return {"MiB after 10": warm >> 20, "MiB at the end": last >> 20}


def soak(size: int, folder: Path, wrong: list[str]) -> Extras:
    """Seconds of attaching, running at changing sizes and presets, and detaching: the model stays what it was."""
    source, pipe = built_in()
    dense = choose_attention(source, "baseline")
    presets = [load_preset("tiny-wan", f"psa_{name}") for name in ("balanced", "budget", "refresh", "timing")]
    shapes = [(96, 9), (64, 17), (96, 17), (48, 5), (64, 5)]
    draw, sizes = random.Random(0), []

    def video(side: int, frames: int) -> Any:
        (request,) = make_requests(source, [PROMPTS[0]], seed=0, settings=settings(side, frames))
        return generate_video(pipe, request, dense).frames

    plain, end = cache(video), time.monotonic() + size
    while time.monotonic() < end:
        side, frames = draw.choice(shapes)
        expected = plain(side, frames)
        bound = {"max_error": 0.1} if draw.random() < 0.3 else {}
        config = draw.choice(presets).replace(warmup_steps=draw.choice([0, 1]))
        with apply_psa(pipe, config, min_tokens=0, **bound) as handle:
            generator = torch.Generator().manual_seed(0)
            pipe(PROMPTS[1], height=side, width=side, num_frames=frames, num_inference_steps=3, generator=generator)
            if not handle.stats().records:
                wrong.append(f"round {len(sizes)}: nothing was counted")
        if draw.random() < 0.2 and not (video(side, frames) == expected).all():
            wrong.append(f"round {len(sizes)}: after detaching the dense video is another")
        gc.collect()
        sizes.append(resident())
    if hooks := sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.transformer.modules()):
        wrong.append(f"{hooks} hooks are left")
    if (growth := (sizes[-1] - sizes[len(sizes) // 3]) >> 20) > 48:
        wrong.append(f"grew by {growth} MiB in the last two thirds")
    return {"rounds": len(sizes), "MiB grown in the last two thirds": growth}


def seed(size: int, folder: Path, wrong: list[str]) -> Extras:
    """The same videos by further processes, the last time by two that share them: the same bytes."""
    made = []
    for index in range(size + 1):
        shared = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if index == size else []
        out = folder / str(index)
        done = python(*shared, "-m", "psa_triton", *generating(PROMPTS[:4]), str(out))
        if done.returncode:
            wrong.append(f"run {index}: {done.stderr[-300:]}")
        made.append(videos(out))
    wrong += [f"run {index}: other bytes" for index, found in enumerate(made) if found != made[0]]
    return {"videos": len(made[0])}


FULL_SIZES: Final[dict[Callable[[int, Path, list[str]], Extras], int]] = {
    fuzz: 10_000,
    inputs: 200,
    kill: 20,
    disk: 50,
    folder: 5,
    tune: 10,
    memory: 50,
    soak: 600,
    seed: 5,
}
CHECKS: Final = {check.__name__: check for check in FULL_SIZES}
"""Each adds what was wrong to a list, given a size and an empty folder; its docstring begins with what that counts."""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "psa_triton", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupted(sent: signal.Signals, seconds: float, *arguments: str) -> tuple[int, str]:
    """Exit code and last words of a command that is sent a signal after some seconds."""
    process = start(*arguments)
    time.sleep(seconds)
    process.send_signal(sent)
    _, told = process.communicate()
    return process.returncode, told


def psa(*arguments: str) -> float:
    """Seconds that the command takes. Raises if it fails."""
    began = time.monotonic()
    done = python("-m", "psa_triton", *arguments)
    if done.returncode:
        raise RuntimeError(f"psa {' '.join(arguments)}: {done.stdout[-300:]} {done.stderr[-300:]}")
    return time.monotonic() - began


@contextmanager
def full_disk(full_at: int) -> Iterator[list[int]]:
    """From that write on, counted from 1, nothing fits any more; gives what was written to."""
    writes, sync = [], os.fsync

    def fsync(descriptor: int) -> None:
        writes.append(descriptor)
        if len(writes) >= full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with mock.patch("os.fsync", fsync):
        yield writes


def generating(prompts: Sequence[str]) -> list[str]:
    """The command that makes small videos of the prompts, but for its folder."""
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    return ["generate", *given, *SMALL, *SPARSE, "--output-dir"]


def videos(out: Path) -> dict[str, tuple[bytes, str]]:
    """Name, bytes and prompt of each video that has its sidecar."""
    sidecars = sorted(out.rglob("video_*.json"))
    return {
        file.stem: (file.with_suffix(".mp4").read_bytes(), json.loads(file.read_text())["settings"]["prompt"])
        for file in sidecars
    }


def half_done(out: Path) -> list[str]:
    """What is wrong with the files of a folder: not readable, or without what belongs to them."""
    faults = []
    for file in [*out.rglob("[!.]*.mp4"), *out.rglob("*.json")]:
        try:
            read_media(file, "video") if file.suffix == ".mp4" else json.loads(file.read_text())
        except Exception as error:
            faults.append(f"{file.name}: {error}")
        if file.match("video_*.json") and not file.with_suffix(".mp4").is_file():
            faults.append(f"{file.name} is there without its video")
    return faults


def built_in() -> tuple[Any, Any]:
    """The built-in model, and its pipeline."""
    source = find_source("tiny-wan")
    return source, load_pipeline(source, device=torch.device("cpu"), dtype=torch.float32, width=96, height=96)


def settings(side: int = 96, frames: int = 9, steps: int = 2) -> dict[str, Any]:
    return {"width": side, "height": side, "num_frames": frames, "num_inference_steps": steps}


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def page(report: dict[str, Any]) -> str:
    rows, wrong = [], []
    for name, found in report["checks"].items():
        more = ", ".join(f"{key} {value}" for key, value in found.items() if key not in ("tried", "wrong", "seconds"))
        rows.append([name, str(found["tried"]), str(len(found["wrong"])), str(found["seconds"]), more or "-"])
        wrong += [f"* {name}: {line}" for line in found["wrong"]]
    lines = [*heading(report, "Reliability"), *table(["check", "size", "wrong", "seconds", "besides"], rows)]
    return "\n".join([*lines, "", *wrong]) + "\n"


def measure(name: str, size: int) -> dict[str, Any]:
    """`tried`, how many; `wrong`, a line for each that was; and what else is worth telling."""
    wrong: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        extras = CHECKS[name](size, Path(folder), wrong)
    return {"tried": size, "wrong": wrong} | extras | {"seconds": round(time.monotonic() - began)}


def main() -> int:
    parser = options("\n".join([__doc__, *(f"{name:8}{check.__doc__}" for name, check in CHECKS.items())]))
    parser.add_argument("checks", nargs="*", default=list(CHECKS), metavar="CHECK[=SIZE]", help="by default all")
    args = parser.parse_args()
    asked = dict(text.partition("=")[::2] for text in args.checks)
    if unknown := asked.keys() - CHECKS.keys():
        parser.error(f"expected some of {', '.join(CHECKS)}, got {', '.join(sorted(unknown))}")
    run = Run("reliability", args.output)
    sizes = {name: int(size or FULL_SIZES[CHECKS[name]]) for name, size in asked.items()}
    checks = {name: run.piece(name, measure, name, size) for name, size in sizes.items()}
    run.write({"checks": checks}, page)
    return int(any(found["wrong"] for found in checks.values()))


if __name__ == "__main__":
    sys.exit(main())
