"""`psa inspect`: what attention read, at which level, and what it missed, as pictures and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psa_triton.models import QWEN2_5_VL, model_key
from psa_triton.tools.cli import options

if TYPE_CHECKING:
    from psa_triton.impl import Impl
    from psa_triton.tools.generation import Attention

_SAVED = "Saved q, k, v"
_VIDEO = "Video (by default as the model is made for)"


def inspect(
    prompt: options.Prompt = None,
    qkv: Annotated[
        Path | None,
        typer.Option(
            "--qkv",
            metavar="FILE",
            help="Look at the tensors q, k and v, [B, H, N, D], of a safetensors file instead of a generation.",
            rich_help_panel=_SAVED,
        ),
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder of inspect.json and the pictures.")] = Path(
        "outputs/inspect"
    ),
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="INDEXES", help="Such as 0,2 or 0,36-39; by default three.")
    ] = None,
    heads: Annotated[str | None, typer.Option("--heads", metavar="INDEXES", help="By default three.")] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="INDEXES", help="Denoising steps, from 0; by default the middle sparse one."),
    ] = None,
    query_blocks: Annotated[
        int, typer.Option("--query-blocks", min=0, help="Query blocks to compute exact attention of; 0 for none.")
    ] = 16,
    save_qkv: Annotated[
        bool, typer.Option("--save-qkv", help="Also write q, k and v of each layer and step, for --qkv.")
    ] = False,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            metavar="F,H,W",
            help="Visual tokens as frames, height and width; by default as the file says.",
            rich_help_panel=_SAVED,
        ),
    ] = None,
    prefix_tokens: Annotated[
        int | None, typer.Option("--prefix-tokens", min=0, help="Text tokens before them.", rich_help_panel=_SAVED)
    ] = None,
    causal: Annotated[bool, typer.Option("--causal", help="Mask later keys.", rich_help_panel=_SAVED)] = False,
    model: options.Model = "tiny-wan",
    model_path: options.ModelPath = None,
    lora_path: options.LoraPath = None,
    attention_preset: Annotated[
        str | None,
        typer.Option(
            "--attention-preset",
            "--preset",
            metavar="NAME",
            help="A preset of the model, or SECTION/PRESET; by default the model's own, or the file's.",
            rich_help_panel="Model and attention",
        ),
    ] = None,
    config: options.PresetsPath = None,
    impl: options.Implementation = "auto",
    seed: options.Seed = 42,
    negative_prompt: options.NegativePrompt = None,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", help="Denoising steps of the run.", rich_help_panel=_VIDEO)
    ] = None,
    width: options.Width = None,
    height: options.Height = None,
    num_frames: options.NumFrames = None,
    guidance_scale: options.GuidanceScale = None,
    guidance_scale_2: options.GuidanceScale2 = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Show at which level each query block reads each key block, what was estimated, and what exact attention does.

    Of a generation (--prompt) or of saved tensors (--qkv). Writes inspect.json, and a PNG a layer, step and head.
    """
    # Here and not above: torch and diffusers take seconds to import.
    from psa_triton.tools.cli import target as targets
    from psa_triton.tools.cli.inspect_run import InspectRun, Selection
    from psa_triton.tools.generation import choose_attention, choose_device, make_requests
    from psa_triton.tools.inspection import read_grid, read_qkv

    settings: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "num_inference_steps": num_inference_steps,
        "width": width,
        "height": height,
        "num_frames": num_frames,
        "guidance_scale": guidance_scale,
        "guidance_scale_2": guidance_scale_2,
    }
    selection = Selection(
        layers=None if layers is None else options.read_indexes("layers", layers),
        heads=None if heads is None else options.read_indexes("heads", heads),
        steps=None if steps is None else options.read_indexes("steps", steps),
        query_blocks=query_blocks,
    )
    run = InspectRun(output_dir, selection)
    if qkv is not None:
        of_generation = {
            "prompt": prompt,
            "layers": layers,
            "steps": steps,
            "save_qkv": save_qkv or None,
            "model_path": model_path,
            "lora_path": lora_path,
            "dtype": None if dtype == "auto" else dtype,
            **settings,
        }
        options.refuse(of_generation, "a generation, and --qkv looks at a file")
        where = choose_device(device)
        file = read_qkv(qkv, where)
        inputs = file.inputs(
            grid=None if grid is None else read_grid(grid), prefix_tokens=prefix_tokens, is_causal=causal
        )
        attention = _preset_of_file(attention_preset or file.header.get("preset"), config, impl)
        run.look_at_file(qkv, inputs, attention, where)
    else:
        of_file = {"grid": grid, "prefix_tokens": prefix_tokens, "causal": causal or None}
        options.refuse(of_file, "saved tensors: give --qkv FILE")
        prompts = targets.read_all_prompts([] if prompt is None else [prompt], None)
        if model_key(model) == QWEN2_5_VL.key:
            raise ValueError(f"model: expected a video model, got {model}; save its q, k, v, and give --qkv --causal")
        source = targets.choose_source(model, model_path=model_path, lora_path=lora_path)
        target = targets.find_target(source, device=device, dtype=dtype, impl=impl)
        attention = choose_attention(source, attention_preset, file=config, impl=impl)
        (request,) = make_requests(source, prompts, seed=seed, settings=settings)
        run.look_at_generation(target, request, attention, save_qkv=save_qkv)


def _preset_of_file(preset: str | None, config: Path | None, impl: Impl) -> Attention:
    """The attention to look at tensors with.

    Raises:
        ValueError: no preset with its section was given, or there is no such preset.
    """
    from psa_triton.presets import resolve
    from psa_triton.tools.generation import Attention

    if "/" not in (preset or ""):
        raise ValueError(
            f"attention_preset: expected SECTION/PRESET, as the file does not tell its model, got {preset!r}; "
            "`psa presets list` shows them"
        )
    found = resolve(preset, file=config)
    return Attention(name=found.name, config=found.config, impl=impl)
