"""`psa generate`, and the scripts of `examples/inference`: videos from prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from psa_triton.tools.cli import options

if TYPE_CHECKING:
    from psa_triton.impl import Impl
    from psa_triton.tools.generation import Attention, DenseParts, ModelSource


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a command that makes videos does where the command line says nothing."""

    model: str
    """Key of the model."""
    keys: tuple[str, ...] = ()
    """The keys to choose from, the first of them for folders with an unknown model; empty for any key."""
    configs: Path | None = None
    """Its `model_configs.py`; None for that of the checkout which the library runs from."""
    use_psa: bool
    """Sparse attention where neither that nor a preset is asked for."""
    warm_up: bool
    """First run an untimed step."""
    timestamp: bool
    """A folder for each run."""


def make_generate(defaults: Defaults) -> Callable[..., None]:
    """The function of a command that turns prompts into videos: its parameters are the command's options."""

    def generate(
        prompt: options.Prompt = None,
        prompt_file: options.PromptFile = None,
        output_dir: options.OutputDir = Path("outputs"),
        timestamp: options.Timestamp = defaults.timestamp,
        overwrite: options.Overwrite = False,
        batch_size: options.BatchSize = 1,
        warm_up: options.WarmUp = defaults.warm_up,
        verbose: options.Verbose = False,
        model: options.Model = defaults.model,
        model_path: options.ModelPath = None,
        lora_path: options.LoraPath = None,
        use_psa: options.UsePsa = None,
        attention_preset: options.AttentionPreset = None,
        config: options.PresetsPath = None,
        impl: options.Implementation = "auto",
        min_tokens: options.MinTokens = None,
        dense_last_steps: options.DenseLastSteps = 0,
        dense_layers: options.DenseLayers = "",
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
        """Turn prompts into videos.

        Each video gets a JSON file of the same name with all settings, versions, times and densities. Videos that are
        there already with the same settings are skipped, so an interrupted batch goes on when started again into the
        same folder (--no-timestamp); any others get the next numbers. Several processes, started by torchrun or
        accelerate launch, share the prompts.
        """
        # Here and not above: torch and diffusers take seconds to import.
        from psa_triton.tools.cli import target as targets
        from psa_triton.tools.cli.run import Run
        from psa_triton.tools.generation import launched_processes, make_requests

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
        prompts = targets.read_all_prompts([] if prompt is None else [prompt], prompt_file)
        source = targets.choose_source(
            model, model_path=model_path, lora_path=lora_path, keys=defaults.keys, configs=defaults.configs
        )
        if use_psa is None:
            use_psa = defaults.use_psa or attention_preset is not None
        dense_parts = targets.read_dense_parts(min_tokens, dense_last_steps, dense_layers)
        attention = _attention(source, attention_preset, use_psa, config, impl, dense_parts)
        requests = make_requests(source, prompts, seed=seed, settings=settings)
        with launched_processes() as processes:
            target = targets.find_target(source, device=device, dtype=dtype, impl=impl, processes=processes)
            run = Run(
                target,
                attention,
                processes,
                batch_size=batch_size,
                warm_up=warm_up,
                verbose=verbose,
                new_folder=timestamp,
            )
            folder = processes.from_main(lambda: _folder(output_dir, source, timestamp))
            failed = run.make(requests, folder, overwrite=overwrite)
        if failed:
            raise typer.Exit(1)

    return generate


generate = make_generate(Defaults(model="tiny-wan", use_psa=True, warm_up=False, timestamp=False))
"""The function of `psa generate`."""


def _attention(
    source: ModelSource, preset: str | None, use_psa: bool, config: Path | None, impl: Impl, dense_parts: DenseParts
) -> Attention:
    from psa_triton.tools.generation import DENSE, choose_attention

    if use_psa:
        return choose_attention(source, preset, file=config, impl=impl, dense_parts=dense_parts)
    if preset is not None or config is not None:
        raise ValueError("expected --use-psa with --attention-preset or --config, got dense attention")
    return DENSE


def _folder(output_dir: Path, source: ModelSource, timestamp: bool) -> Path:
    folder = output_dir / source.short_name
    return folder / datetime.now().strftime("%Y%m%d_%H%M%S") if timestamp else folder
