"""What the commands are asked: a dataclass a command, whose docstring is its help, of groups that several have."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from psa_triton.models import QWEN2_5_VL
from psa_triton.tools.cli.options import REQUIRED, option
from psa_triton.tools.shapes import SHAPES

_of_attention = partial(option, rich_help_panel="Model and attention")
_of_video = partial(option, rich_help_panel="Video (by default as the model is made for)")
_of_machine = partial(option, rich_help_panel="Machine")
_of_comparison = partial(option, rich_help_panel="Comparison")
_of_saved = partial(option, rich_help_panel="Saved q, k, v")
_of_goal = partial(option, rich_help_panel="Goal (one of them; by default the budget of the preset that is tuned)")
_of_input = partial(option, rich_help_panel="Image or video")


@dataclass(frozen=True, kw_only=True)
class PromptsOptions:
    """What to make, of as many prompts as are given."""

    prompt: list[str] | None = option(None, "What is to be seen; may be given repeatedly.", metavar="TEXT")
    prompt_file: Path | None = option(
        None, "Prompts, one a line; blank lines and # comments are skipped.", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, with which weights."""

    model: str = _of_attention("tiny-wan", "A known model, or a diffusers pipeline folder.", metavar="KEY|PATH")
    model_path: str | None = _of_attention(
        None, "Weights for a known model: a pipeline folder, or a hub id.", metavar="PATH|ID"
    )
    lora_path: str | None = _of_attention(
        None, "LoRA weights: a safetensors file, its folder, or a hub id.", metavar="PATH|ID"
    )


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """Where a preset is from, and what computes it."""

    config: Path | None = _of_attention(None, "A presets file of your own instead of the shipped one.", metavar="PATH")
    # The words are those of `psa_triton.impl.Impl`, whose module needs torch; a test holds them together.
    impl: Literal["auto", "reference", "torch", "cpu", "triton"] = _of_attention(
        "auto", "Implementation of the sparse operator."
    )


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Sparse attention of which preset, or dense."""

    use_psa: bool | None = _of_attention(
        None,
        "Sparse or dense attention. By default `psa generate` is sparse; the scripts are if a preset is named.",
        "--use-psa/--dense",
    )
    attention_preset: str | None = _of_attention(
        None,
        "A preset of the model (see `psa presets list`), or SECTION/PRESET; by default the model's own.",
        metavar="NAME",
    )
    preset: PresetOptions = field(default_factory=PresetOptions)


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """What runs dense though attention is sparse."""

    max_error: float | None = _of_attention(
        None,
        "Bound on the measured relative error of attention, past which a layer runs dense; instead of warm-up.",
        metavar="ERROR",
    )
    min_tokens: int | None = _of_attention(
        None, "Shorter sequences run dense; 0 for none. By default those that PSA is no faster on."
    )
    dense_last_steps: int = _of_attention(0, "Denoising steps at the end that run dense.", metavar="N")
    dense_layers: str = _of_attention(
        "", "Transformer blocks that run dense, such as 0,1 or 0,36-39.", metavar="INDEXES"
    )


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """What a video is like: fields of `VideoRequest`; None for what the model is made for."""

    negative_prompt: str | None = _of_video(None, "What is not to be seen.", metavar="TEXT")
    image: Path | None = _of_video(None, "A picture to start from, for models that do.", metavar="FILE")
    num_inference_steps: int | None = _of_video(None, "Denoising steps.", "--num-inference-steps", "--steps")
    width: int | None = _of_video(None, "Pixels.")
    height: int | None = _of_video(None, "Pixels.")
    num_frames: int | None = _of_video(None, "Frames.")
    guidance_scale: float | None = _of_video(None, "How closely to follow the prompt; 1 runs the model once a step.")
    guidance_scale_2: float | None = _of_video(None, "The same for the second transformer, where there are two.")


@dataclass(frozen=True, kw_only=True)
class VideoFileOptions(VideoOptions):
    """The same of a video that is written."""

    fps: int | None = _of_video(None, "Frames per second of the file.")


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where a model runs."""

    device: str = _of_machine("auto", "auto, cpu, cuda, cuda:1, ...; of several processes each has a GPU of its own.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _of_machine(
        "auto", "Type of the weights; auto: float32 on a CPU, else bfloat16."
    )


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Turn prompts into videos.

    Each video gets a JSON file of the same name with all settings, versions, times and densities. Videos that are
    there already with the same settings are skipped, so an interrupted batch goes on when started again into the
    same folder (--no-timestamp); any others get the next numbers. Several processes, started by torchrun or
    accelerate launch, share the prompts.
    """

    prompts: PromptsOptions = field(default_factory=PromptsOptions)
    output_dir: Path = option(
        Path("outputs"),
        "Videos go to OUTPUT_DIR/MODEL: video_0000.mp4, video_0000.json, ...; new ones get the next numbers.",
    )
    timestamp: bool = option(False, "Make a new folder in OUTPUT_DIR/MODEL for this run.")
    overwrite: bool = option(False, "Number videos from 0000, and replace those that are there.", "--overwrite")
    batch_size: int = option(1, "How many videos to make together.", min=1)
    warm_up: bool = option(
        False, "First run an untimed step, for fair times.", "--warmup/--no-warmup", "--warm-up/--no-warm-up"
    )
    verbose: bool = option(False, "Tell of every sparse attention call.", "--verbose")
    model: ModelOptions = field(default_factory=ModelOptions)
    attention: AttentionOptions = field(default_factory=AttentionOptions)
    dense: DenseOptions = field(default_factory=DenseOptions)
    seed: int = _of_video(42, "Seed of the noise; video i uses seed + i.")
    video: VideoFileOptions = field(default_factory=VideoFileOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Make the same video dense and with PSA, and show how close, how fast and how sparse it is.

    Writes comparison.json, comparison.md and report.html (to look at in a browser), and for every prompt and seed
    dense.mp4, psa.mp4 (or one a preset), side_by_side.mp4, frames.png and case.json. What is done is kept, so an
    interrupted run goes on when started again into the same folder.
    """

    prompts: PromptsOptions = field(default_factory=PromptsOptions)
    output_dir: Path = option(
        Path("outputs/compare"), "Folder of the results; several prompts or seeds have folders in it."
    )
    overwrite: bool = option(False, "Do again what is done already, or was done with other settings.", "--overwrite")
    warm_up: bool = option(True, "First run an untimed step each, for fair times.")
    seed: list[int] | None = _of_comparison(
        None, "Seed of the noise, 42 by default; every prompt is made with every seed. May be given repeatedly."
    )
    num_seeds: int = _of_comparison(1, "That many seeds from --seed on.", min=1)
    ceiling: Literal["auto", "backend", "dtype", "none"] = _of_comparison(
        "auto",
        "Make the dense video again by another backend or in another dtype, as what to expect at best; auto: "
        "backend on a GPU in 16 bits, else dtype.",
    )
    model: ModelOptions = field(default_factory=ModelOptions)
    attention_preset: list[str] | None = _of_attention(
        None,
        "A preset of the model, or SECTION/PRESET; by default the model's own. May be given repeatedly.",
        metavar="NAME",
    )
    preset: PresetOptions = field(default_factory=PresetOptions)
    dense: DenseOptions = field(default_factory=partial(DenseOptions, min_tokens=0))
    video: VideoFileOptions = field(default_factory=VideoFileOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


@dataclass(frozen=True, kw_only=True)
class _PrefillOptions(AttentionOptions):
    use_psa: bool | None = _of_attention(
        None,
        "Sparse or dense attention in the prefill. By default `psa understand` is sparse; the script is if a "
        "preset is named.",
        "--use-psa/--dense",
    )


@dataclass(frozen=True, kw_only=True)
class Understand:
    """Answer a question about an image or a video.

    The answer appears as it is made; then how many tokens there were, how long they took, and how much of the
    attention was sparse.
    """

    input: Path = _of_input(REQUIRED, "The image or video.", metavar="FILE")
    prompt: str = option(REQUIRED, "The question.", metavar="TEXT")
    type: Literal["image", "video"] = _of_input("image", "What the file is.")
    preprocess_frames: int | None = _of_input(
        None, "How many evenly spread frames of a video to read; by default two a second, 4 to 768.", min=1
    )
    max_pixels: int | None = _of_input(
        None,
        "Shrink the image, or each frame, to at most this many pixels; by default to the model's own limit.",
        min=1,
    )
    max_tokens: int = option(512, "Tokens of the answer at most.", min=1)
    model: str = _of_attention(
        QWEN2_5_VL.key,
        f"{QWEN2_5_VL.key}, or another Qwen2.5-VL or Qwen2-VL: a folder or a hub id.",
        metavar="KEY|PATH|ID",
    )
    attention: _PrefillOptions = field(default_factory=_PrefillOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


@dataclass(frozen=True, kw_only=True)
class _MeasuringOptions(MachineOptions):
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", None)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time attention of a model's shape: dense, flex_attention and PSA side by side, at growing lengths.

    Queries and keys are synthetic and attend to their surroundings; tokens are in order already, as inside a model.
    """

    shape: str = option(
        "wan21-720p",
        f"One of {', '.join(SHAPES)}; or a model, by key or preset section, at its largest.",
        "--shape",
        "--model",
    )
    attention_preset: str | None = option(None, "A preset of the shape's model, or SECTION/PRESET.")
    preset: PresetOptions = field(default_factory=PresetOptions)
    heads: int | None = option(None, "Key heads to measure; by default one on a CPU, all on a GPU.", min=1)
    machine: _MeasuringOptions = field(default_factory=_MeasuringOptions)
    repeats: int = option(3, "Timed rounds; the median counts.", min=1)
    seconds: float = option(120.0, "Begin no length that would take the run past this.", min=1)
    flex: bool = option(True, "Also time compiled flex_attention.")
    tune_kernels: bool = option(
        False, "Find the fastest tiles of the GPU kernels for the shape instead, and write them to the user's table."
    )
    output_dir: Path = option(Path("outputs/bench"), "Folder of bench.json and bench.png.")


@dataclass(frozen=True, kw_only=True)
class _InspectedVideoOptions(VideoOptions):
    """`--steps` is what to look at."""

    num_inference_steps: int | None = _of_video(None, "Denoising steps of the run.", "--num-inference-steps")


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show at which level each query block reads each key block, what was estimated, and what exact attention does.

    Of a generation (--prompt) or of saved tensors (--qkv). Writes inspect.json, and a PNG a layer, step and head.
    """

    prompt: str | None = option(None, "What is to be seen.")
    qkv: Path | None = _of_saved(
        None,
        "Look at the tensors q, k and v, [B, H, N, D], of a safetensors file instead of a generation.",
        metavar="FILE",
    )
    output_dir: Path = option(Path("outputs/inspect"), "Folder of inspect.json and the pictures.")
    layers: str | None = option(None, "Such as 0,2 or 0,36-39; by default three.", metavar="INDEXES")
    heads: str | None = option(None, "By default three.", metavar="INDEXES")
    steps: str | None = option(None, "Denoising steps, from 0; by default the middle sparse one.", metavar="INDEXES")
    query_blocks: int = option(16, "Query blocks to compute exact attention of; 0 for none.", min=0)
    save_qkv: bool = option(False, "Also write q, k and v of each layer and step, for --qkv.", "--save-qkv")
    grid: str | None = _of_saved(
        None, "Visual tokens as frames, height and width; by default as the file says.", metavar="F,H,W"
    )
    prefix_tokens: int | None = _of_saved(None, "Text tokens before them.", min=0)
    causal: bool = _of_saved(False, "Mask later keys.", "--causal")
    model: ModelOptions = field(default_factory=ModelOptions)
    attention_preset: str | None = _of_attention(
        None,
        "A preset of the model, or SECTION/PRESET; by default the model's own, or the file's.",
        "--attention-preset",
        "--preset",
        metavar="NAME",
    )
    preset: PresetOptions = field(default_factory=PresetOptions)
    seed: int = _of_video(42, "Seed of the noise; video i uses seed + i.")
    video: _InspectedVideoOptions = field(default_factory=_InspectedVideoOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Find the budgets by layer and denoising step that leave least error at a cost, or cost least for an error.

    Makes a video a prompt with dense attention, tries growing budgets on what its attention layers attended with, shows
    the curves, and writes a preset for `psa generate --config FILE --attention-preset NAME`, with a picture beside it.
    """

    output: Path = option(
        REQUIRED, "Presets file to write; one that psa tune wrote before keeps its other presets.", metavar="FILE"
    )
    prompts: PromptsOptions = field(default_factory=PromptsOptions)
    qkv: list[Path] | None = _of_saved(
        None,
        "What `psa inspect --save-qkv` wrote, instead of prompts: a file, or a folder of them; may be given "
        "repeatedly.",
        metavar="PATH",
    )
    target_error: float | None = _of_goal(
        None, "Relative error of attention's output, root mean square over layers and steps."
    )
    target_speedup: float | None = _of_goal(
        None,
        "Work of dense attention over that of a whole run's attention, as densities count it; no time is "
        "measured for it.",
    )
    budget: float | None = _of_goal(None, "Mean density of the steps after the warm-up.")
    preset_name: str = option("psa_tuned", "Name of the preset to write.")
    parts: int = option(4, "Parts of the run that get budgets of their own.", min=1)
    query_blocks: int = option(16, "Query blocks to compute exact attention of, in each call.", min=1)
    warmup_steps: int | None = option(None, "First steps that run dense; by default as in the preset.", min=0)
    check: bool = option(
        False, "Make the first prompt's video with the tuned preset too: its PSNR and seconds.", "--check"
    )
    model: ModelOptions = field(default_factory=ModelOptions)
    attention_preset: str | None = _of_attention(
        None,
        "The preset to tune, a mask_mode: budget one of the model, or SECTION/PRESET; psa_budget by default.",
        metavar="NAME",
    )
    preset: PresetOptions = field(default_factory=PresetOptions)
    seed: int = _of_video(42, "Seed of the noise; video i uses seed + i.")
    video: VideoOptions = field(default_factory=VideoOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look at packages, devices and implementations, by trying them; exit code 1 if something needed does not work."""

    as_json: bool = option(False, "Print the findings as JSON.", "--json")


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models known by name: size, tokens, steps and presets, and whether their real weights were run here."""

    as_markdown: bool = option(False, "Print the table as Markdown.", "--markdown")
