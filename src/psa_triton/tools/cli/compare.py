"""`psa compare`: dense and sparse attention on the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from psa_triton.tools.cli import options

_COMPARISON = "Comparison"


def compare(
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="What is to be seen; may be given repeatedly.")
    ] = None,
    prompt_file: options.PromptFile = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", help="Folder of the results; several prompts or seeds have folders in it.")
    ] = Path("outputs/compare"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do again what is done already, or was done with other settings.")
    ] = False,
    warm_up: Annotated[
        bool, typer.Option("--warm-up/--no-warm-up", help="First run an untimed step each, for fair times.")
    ] = True,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            "--seed",
            help="Seed of the noise, 42 by default; every prompt is made with every seed. May be given repeatedly.",
            rich_help_panel=_COMPARISON,
        ),
    ] = None,
    num_seeds: Annotated[
        int, typer.Option("--num-seeds", min=1, help="That many seeds from --seed on.", rich_help_panel=_COMPARISON)
    ] = 1,
    ceiling: Annotated[
        Literal["auto", "backend", "dtype", "none"],
        typer.Option(
            "--ceiling",
            help="Make the dense video again by another backend or in another dtype, as what to expect at best; auto: "
            "backend on a GPU in 16 bits, else dtype.",
            rich_help_panel=_COMPARISON,
        ),
    ] = "auto",
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
    min_tokens: options.MinTokens = 0,
    dense_last_steps: options.DenseLastSteps = 0,
    dense_layers: options.DenseLayers = "",
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
    """Make the same video dense and with PSA, and show how close, how fast and how sparse it is.

    Writes comparison.json, comparison.md and report.html (to look at in a browser), and for every prompt and seed
    dense.mp4, psa.mp4 (or one a preset), side_by_side.mp4, frames.png and case.json. What is done is kept, so an
    interrupted run goes on when started again into the same folder.
    """
    # Here and not above: torch and diffusers take seconds to import.
    from psa_triton.tools.cli import target as targets
    from psa_triton.tools.cli.compare_run import CompareRun
    from psa_triton.tools.evaluation import choose_ceiling, plan_cases
    from psa_triton.tools.generation import choose_attention, make_requests

    prompts = targets.read_all_prompts(prompt or [], prompt_file)
    seeds = _all_seeds(seed or [42], num_seeds)
    source = targets.choose_source(model, model_path=model_path, lora_path=lora_path)
    target = targets.find_target(source, device=device, dtype=dtype, impl=impl)
    parts = targets.read_dense_parts(min_tokens, dense_last_steps, dense_layers)
    presets: list[str | None] = [*attention_preset] if attention_preset else [None]
    attentions = [
        choose_attention(target.source, preset, file=config, impl=impl, dense_parts=parts) for preset in presets
    ]
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
    requests = make_requests(target.source, prompts, seed=0, settings=settings)
    second = choose_ceiling(ceiling, target.device, target.dtype)
    run = CompareRun(target, attentions, second, warm_up=warm_up)
    cases = plan_cases(output_dir, requests, seeds, attentions, ceiling=second, model=run.model_settings())
    if run.make(cases, output_dir, overwrite=overwrite):
        raise typer.Exit(1)


def _all_seeds(seeds: list[int], count: int) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seed: expected each once, got {seeds}")
    if count == 1:
        return seeds
    if len(seeds) > 1:
        raise ValueError("expected --num-seeds with at most one --seed, got several")
    return [seeds[0] + index for index in range(count)]
