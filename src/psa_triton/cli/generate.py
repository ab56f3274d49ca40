"""`psa generate`: videos from prompts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from psa_triton.cli import options
from psa_triton.cli.progress import VideoProgress
from psa_triton.generation import (
    DENSE,
    Attention,
    Failure,
    GeneratedVideo,
    Job,
    ModelSource,
    OnStep,
    VideoRequest,
    choose_attention,
    generate_video,
    make_requests,
    pending,
    run_jobs,
    settings_of,
    surroundings,
)
from psa_triton.impl import Impl


def generate(
    prompt: Annotated[str | None, typer.Option("--prompt", help="What is to be seen.")] = None,
    prompt_file: options.PromptFile = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", help="Folder of the videos: video_0000.mp4, video_0000.json, ...")
    ] = Path("outputs"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make videos again that are there already, or were made differently.")
    ] = False,
    model: options.Model = "tiny-wan",
    attention_preset: Annotated[
        str | None,
        typer.Option(
            "--attention-preset",
            metavar="NAME",
            help="A preset of the model (see `psa presets list`), or SECTION/PRESET; by default the model's own.",
            rich_help_panel="Model and attention",
        ),
    ] = None,
    use_psa: Annotated[
        bool,
        typer.Option("--use-psa/--dense", help="Sparse or dense attention.", rich_help_panel="Model and attention"),
    ] = True,
    config: options.PresetsPath = None,
    impl: options.Implementation = "auto",
    seed: options.Seed = 42,
    negative_prompt: options.NegativePrompt = None,
    num_inference_steps: options.Steps = None,
    width: options.Width = None,
    height: options.Height = None,
    num_frames: options.NumFrames = None,
    guidance_scale: options.GuidanceScale = None,
    fps: options.Fps = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Turn prompts into videos.

    Each video gets a JSON file of the same name with all settings, versions, times and densities. Videos that are
    there already with the same settings are skipped, so an interrupted batch goes on when started again.
    """
    prompts = options.read_all_prompts([] if prompt is None else [prompt], prompt_file)
    target = options.find_target(model, device=device, dtype=dtype, impl=impl)
    attention = _attention(target.source, attention_preset, use_psa, config, impl)
    settings = {
        "negative_prompt": negative_prompt,
        "num_inference_steps": num_inference_steps,
        "width": width,
        "height": height,
        "num_frames": num_frames,
        "guidance_scale": guidance_scale,
        "fps": fps,
    }
    requests = make_requests(target.source, prompts, seed=seed, settings=settings)
    describe = partial(settings_of, target.source, attention=attention, device=target.device, dtype=target.dtype)
    jobs = [
        Job(output_dir / f"video_{index:04d}.mp4", request, describe(request)) for index, request in enumerate(requests)
    ]
    failures = _run(jobs, pending(jobs, overwrite=overwrite), target, attention)
    if failures:
        raise typer.Exit(1)


def _attention(source: ModelSource, preset: str | None, use_psa: bool, config: Path | None, impl: Impl) -> Attention:
    if use_psa:
        return choose_attention(source, preset, file=config, impl=impl)
    if preset is not None or config is not None:
        raise ValueError("expected --dense alone, got --attention-preset or --config with it")
    return DENSE


def _run(jobs: list[Job], todo: list[Job], target: options.Target, attention: Attention) -> list[Failure]:
    """Make what is left to do, and say how each video went."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for job in jobs:
        if job not in todo:
            console.print(f"{job.path}: finished before, skipped")
    if not todo:
        return []
    pipe = target.load(todo[0].request, console)

    def make(request: VideoRequest, on_step: OnStep) -> GeneratedVideo:
        return generate_video(pipe, request, attention, on_step=on_step)

    with VideoProgress(console, len(todo)) as progress:

        def start(job: Job) -> OnStep:
            return progress.start_video(job.path.name, job.request.num_inference_steps)

        def end(job: Job, outcome: GeneratedVideo | Failure) -> None:
            progress.end_video()
            console.print(_outcome(job, outcome))

        failures = run_jobs(todo, make, describe=partial(surroundings, target.device), on_start=start, on_end=end)
    if failures:
        console.print(f"{len(failures)} of {len(todo)} videos failed:")
    for failure in failures:
        console.print(f"  {failure.job.path.name} ({failure.job.request.prompt}): {_reason(failure.error)}")
    return failures


def _outcome(job: Job, outcome: GeneratedVideo | Failure) -> str:
    if isinstance(outcome, Failure):
        return f"{job.path}: failed: {_reason(outcome.error)}"
    cost = outcome.cost
    line = f"{job.path}: {cost.total_seconds:.1f} s, {cost.attention_seconds:.1f} s of it in self-attention"
    if cost.attention_density is None or cost.run_density is None:
        return f"{line}; all of it dense ({', '.join(cost.dense_reasons)})"
    return (
        f"{line}; density {cost.attention_density:.1%}, {cost.attention_density_with_estimation:.1%} with estimation, "
        f"{cost.run_density_with_estimation:.1%} over the whole run"
    )


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
