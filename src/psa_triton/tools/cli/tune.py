"""`psa tune`: a budget for each layer and part of a run, as a preset of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from psa_triton.tools.cli import options

if TYPE_CHECKING:
    from psa_triton.impl import Impl
    from psa_triton.tools.generation import Attention
    from psa_triton.tools.inspection import QKVFile

_GOAL: Final = "Goal (one of them; by default the budget of the preset that is tuned)"
_SAVED: Final = "Saved q, k, v"
_BASE: Final = "psa_budget"


def tune(
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="Presets file of yours to write, or to add the preset to.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="What is to be seen; may be given repeatedly.")
    ] = None,
    prompt_file: options.PromptFile = None,
    qkv: Annotated[
        list[Path] | None,
        typer.Option(
            "--qkv",
            metavar="PATH",
            help="What `psa inspect --save-qkv` wrote, instead of prompts: a file, or a folder of them; may be given "
            "repeatedly.",
            rich_help_panel=_SAVED,
        ),
    ] = None,
    target_error: Annotated[
        float | None,
        typer.Option(
            "--target-error",
            help="Relative error of attention's output, root mean square over layers and steps.",
            rich_help_panel=_GOAL,
        ),
    ] = None,
    target_speedup: Annotated[
        float | None,
        typer.Option(
            "--target-speedup",
            help="Work of dense attention over that of a whole run's attention, as densities count it; no time is "
            "measured for it.",
            rich_help_panel=_GOAL,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="Mean density of the steps after the warm-up.", rich_help_panel=_GOAL),
    ] = None,
    preset_name: Annotated[str, typer.Option("--preset-name", help="Name of the preset to write.")] = "psa_tuned",
    parts: Annotated[int, typer.Option("--parts", min=1, help="Parts of the run that get budgets of their own.")] = 4,
    query_blocks: Annotated[
        int, typer.Option("--query-blocks", min=1, help="Query blocks to compute exact attention of, in each call.")
    ] = 16,
    warmup_steps: Annotated[
        int | None,
        typer.Option("--warmup-steps", min=0, help="First steps that run dense; by default as in the preset."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Make the first prompt's video with the tuned preset too: its PSNR and seconds."),
    ] = False,
    model: options.Model = "tiny-wan",
    model_path: options.ModelPath = None,
    lora_path: options.LoraPath = None,
    attention_preset: Annotated[
        str | None,
        typer.Option(
            "--attention-preset",
            metavar="NAME",
            help="The preset to tune, a mask_mode: budget one of the model, or SECTION/PRESET; psa_budget by default.",
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
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Find the budgets by layer and denoising step that leave least error at a cost, or cost least for an error.

    Makes a video a prompt with dense attention, tries growing budgets on what its attention layers attended with, shows
    the curves, and writes a preset for `psa generate --config FILE --attention-preset NAME`, with a picture beside it.
    """
    # Here and not above: torch and diffusers take seconds to import.
    from psa_triton.tools.cli import target as targets
    from psa_triton.tools.cli.tune_run import Destination, TuneRun
    from psa_triton.tools.generation import choose_attention, choose_device, make_requests
    from psa_triton.tools.inspection import read_qkv
    from psa_triton.tools.tuning import Goal

    settings: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "num_inference_steps": num_inference_steps,
        "width": width,
        "height": height,
        "num_frames": num_frames,
        "guidance_scale": guidance_scale,
        "guidance_scale_2": guidance_scale_2,
    }
    goal = None
    if (target_error, target_speedup, budget) != (None, None, None):
        goal = Goal(budget=budget, speedup=target_speedup, error=target_error)
    to = Destination(output, preset_name, config)
    if qkv:
        of_run = {"prompt": prompt, "prompt_file": prompt_file, "check": check or None, **settings}
        del of_run["num_inference_steps"]
        options.refuse(of_run, "a generation, and --qkv looks at files")
        where = choose_device(device)
        files = {path: read_qkv(path, where) for path in _files(qkv)}
        base = _preset_of_files(attention_preset, files.values(), config, impl)
        run = TuneRun(base, warmup_steps, goal, to, query_blocks)
        run.tune_files(files, steps=num_inference_steps)
        return
    prompts = targets.read_all_prompts(prompt or [], prompt_file)
    source = targets.choose_source(model, model_path=model_path, lora_path=lora_path)
    target = targets.find_target(source, device=device, dtype=dtype, impl=impl)
    base = choose_attention(source, attention_preset or _BASE, file=config, impl=impl)
    run = TuneRun(base, warmup_steps, goal, to, query_blocks)
    run.tune_model(target, make_requests(source, prompts, seed=seed, settings=settings), parts=parts, check=check)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders, by name.

    Raises:
        ValueError: a folder has none.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"qkv: expected safetensors files in {path}, found none")
        files += inside
    return files


def _preset_of_files(preset: str | None, files: Iterable[QKVFile], config: Path | None, impl: Impl) -> Attention:
    """The preset to tune: as asked for, or that of the section that the files' own presets are of.

    Raises:
        ValueError: neither tells one section, or there is no such preset.
    """
    from psa_triton.presets import resolve
    from psa_triton.tools.generation import Attention

    if preset is None:
        sections = {file.header.get("preset", "").partition("/")[0] for file in files}
        preset = f"{min(sections)}/{_BASE}" if len(sections) == 1 and all(sections) else None
    if "/" not in (preset or ""):
        raise ValueError(
            f"attention_preset: expected SECTION/PRESET, as the files do not tell one model, got {preset!r}; "
            "`psa presets list` shows them"
        )
    found = resolve(preset, file=config)
    return Attention(name=found.name, config=found.config, impl=impl)
