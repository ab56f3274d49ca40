"""`psa compare`: dense and sparse attention on the same noise."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from psa_triton.cli import options
from psa_triton.cli.progress import VideoProgress
from psa_triton.evaluation import (
    Comparison,
    Fidelity,
    compare_attentions,
    label_attentions,
    sentence,
    write_comparison,
)
from psa_triton.generation import DENSE, Attention, Cost, VideoRequest, choose_attention, make_requests, surroundings

_MEASURES = (
    "density of sparse attention",
    "  with cost of estimation",
    "  over the whole run",
    "self-attention, s",
    "transformer, s",
    "total, s",
    "PSNR to dense, dB",
    "SSIM to dense",
)


def compare(
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="What is to be seen; may be given repeatedly.")
    ] = None,
    prompt_file: options.PromptFile = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", help="Folder of the results; with several prompts one folder each in it.")
    ] = Path("outputs/compare"),
    warm_up: Annotated[
        bool, typer.Option("--warm-up/--no-warm-up", help="First run an untimed step each, for fair times.")
    ] = True,
    model: options.Model = "tiny-wan",
    model_path: options.ModelPath = None,
    lora_path: options.LoraPath = None,
    attention_preset: Annotated[
        list[str] | None,
        typer.Option(
            "--attention-preset",
            metavar="NAME",
            help="A preset of the model, or SECTION/PRESET; by default the model's own. May be given repeatedly.",
            rich_help_panel="Model and attention",
        ),
    ] = None,
    config: options.PresetsPath = None,
    impl: options.Implementation = "auto",
    seed: options.Seed = 42,
    negative_prompt: options.NegativePrompt = None,
    num_inference_steps: options.Steps = None,
    width: options.Width = None,
    height: options.Height = None,
    num_frames: options.NumFrames = None,
    guidance_scale: options.GuidanceScale = None,
    guidance_scale_2: options.GuidanceScale2 = None,
    fps: options.Fps = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Make the same video dense and with PSA, and show how close and how fast it is.

    Writes dense.mp4, psa.mp4 (or one a preset), side_by_side.mp4, frames.png and comparison.json, in place of those
    of an earlier run.
    """
    prompts = options.read_all_prompts(prompt or [], prompt_file)
    source = options.choose_source(model, model_path=model_path, lora_path=lora_path)
    target = options.find_target(source, device=device, dtype=dtype, impl=impl)
    presets: list[str | None] = [*attention_preset] if attention_preset else [None]
    attentions = [choose_attention(target.source, preset, file=config, impl=impl) for preset in presets]
    settings = {
        "negative_prompt": negative_prompt,
        "num_inference_steps": num_inference_steps,
        "width": width,
        "height": height,
        "num_frames": num_frames,
        "guidance_scale": guidance_scale,
        "guidance_scale_2": guidance_scale_2,
        "fps": fps,
    }
    requests = make_requests(target.source, prompts, seed=seed, settings=settings)
    label_attentions(attentions)
    _run(requests, attentions, target, output_dir, warm_up)


def _run(
    requests: list[VideoRequest], attentions: list[Attention], target: options.Target, output_dir: Path, warm_up: bool
) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    pipe = target.load(requests[0], console)
    lora = None if target.lora is None else target.lora.as_dict()
    model_settings = {"model": target.source.name, "weights": target.source.weights, "lora": lora}
    for index, request in enumerate(requests):
        folder = output_dir if len(requests) == 1 else output_dir / f"prompt_{index:04d}"
        with VideoProgress(console, 1 + len(attentions)) as progress:
            comparison = compare_attentions(
                pipe,
                request,
                attentions,
                warm_up=warm_up and index == 0,
                on_start=partial(progress.start_video, steps=request.num_inference_steps),
                on_end=progress.end_video,
            )
        write_comparison(folder, comparison, {**model_settings, **surroundings(target.device)})
        console.print(_table(comparison))
        for candidate in comparison.candidates:
            console.print(sentence(comparison, candidate))
        console.print(f"Files: {folder}")


def _table(comparison: Comparison) -> Table:
    """One column an attention: its densities, seconds, and closeness to the dense one."""
    columns = {DENSE.name: _cells(comparison.dense.cost, None)}
    for candidate in comparison.candidates:
        columns[candidate.label] = _cells(candidate.video.cost, candidate.fidelity)
    table = Table("", title=comparison.request.prompt)
    for label in columns:
        table.add_column(label, justify="right")
    for row in zip(_MEASURES, *columns.values(), strict=True):
        table.add_row(*row)
    return table


def _cells(cost: Cost, scores: Fidelity | None) -> list[str]:
    """A cell for each of `_MEASURES`."""
    shares = (cost.attention_density, cost.attention_density_with_estimation, cost.run_density_with_estimation)
    seconds = (cost.attention_seconds, cost.transformer_seconds, cost.total_seconds)
    return [
        *("-" if share is None else f"{share:.1%}" for share in shares),
        *(f"{value:.2f}" for value in seconds),
        *(("-", "-") if scores is None else (f"{scores.psnr:.1f}", f"{scores.ssim:.3f}")),
    ]
