"""What the commands are asked: a class a command, whose docstring is its help, of groups that several have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from psa_triton.models import QWEN2_5_VL
from psa_triton.tools.cli.options import REQUIRED, option, options
from psa_triton.tools.shapes import SHAPES

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

_ATTENTION = "Model and attention"
_VIDEO = "Video (by default as the model is made for)"
_MACHINE = "Machine"
_COMPARISON = "Comparison"
_SAVED = "Saved q, k, v"
_GOAL = "Goal (one of them; by default the budget of the preset that is tuned)"
_INPUT = "Image or video"
_ANSWERING = f"{QWEN2_5_VL.key}, or another Qwen2.5-VL or Qwen2-VL: a folder or a hub id."
_MEASURED = f"One of {', '.join(SHAPES)}; or a model, by key or preset section, at its largest."


@options()
class PromptsOptions:
    """What to make, of as many prompts as are given."""

    prompt: Annotated[list[str] | None, option(metavar="TEXT")] = None
    """What is to be seen; may be given repeatedly."""
    prompt_file: Annotated[Path | None, option(metavar="FILE")] = None
    """Prompts, one a line; blank lines and # comments are skipped."""


@options(_ATTENTION)
class ModelOptions:
    """Which model, with which weights."""

    model: Annotated[str, option(metavar="KEY|PATH")] = "tiny-wan"
    """A known model, or a diffusers pipeline folder."""
    model_path: Annotated[str | None, option(metavar="PATH|ID")] = None
    """Weights for a known model: a pipeline folder, or a hub id."""
    lora_path: Annotated[str | None, option(metavar="PATH|ID")] = None
    """LoRA weights: a safetensors file, its folder, or a hub id."""


@options(_ATTENTION)
class PresetOptions:
    """Where a preset is from, and what computes it."""

    config: Annotated[Path | None, option(metavar="PATH")] = None
    """A presets file of your own instead of the shipped one."""
    # The words are those of `psa_triton.impl.Impl`, whose module needs torch; a test holds them together.
    impl: Literal["auto", "reference", "torch", "cpu", "triton"] = "auto"
    """Implementation of the sparse operator."""


@options(_ATTENTION)
class AttentionOptions:
    """Sparse attention of which preset, or dense."""

    use_psa: Annotated[bool | None, option("--use-psa/--dense")] = None
    """Sparse or dense attention. By default `psa generate` is sparse; the scripts are if a preset is named."""
    attention_preset: Annotated[str | None, option(metavar="NAME")] = None
    """A preset of the model (see `psa presets list`), or SECTION/PRESET; by default the model's own."""
    preset: PresetOptions = PresetOptions()


@options(_ATTENTION)
class DenseOptions:
    """What runs dense though attention is sparse."""

    max_error: Annotated[float | None, option(metavar="ERROR")] = None
    """Bound on the measured relative error of attention, past which a layer runs dense; instead of warm-up."""
    min_tokens: int | None = None
    """Shorter sequences run dense; 0 for none. By default those that PSA is no faster on."""
    dense_last_steps: Annotated[int, option(metavar="N")] = 0
    """Denoising steps at the end that run dense."""
    dense_layers: Annotated[str, option(metavar="INDEXES")] = ""
    """Transformer blocks that run dense, such as 0,1 or 0,36-39."""


@options(_VIDEO)
class VideoOptions:
    """What a video is like: fields of `VideoRequest`; None for what the model is made for."""

    negative_prompt: Annotated[str | None, option(metavar="TEXT")] = None
    """What is not to be seen."""
    image: Annotated[Path | None, option(metavar="FILE")] = None
    """A picture to start from, for models that do."""
    num_inference_steps: Annotated[int | None, option("--num-inference-steps", "--steps")] = None
    """Denoising steps."""
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    num_frames: int | None = None
    """Frames."""
    guidance_scale: float | None = None
    """How closely to follow the prompt; 1 runs the model once a step."""
    guidance_scale_2: float | None = None
    """The same for the second transformer, where there are two."""


@options()
class VideoFileOptions(VideoOptions):
    """The same of a video that is written."""

    fps: int | None = None
    """Frames per second of the file."""


@options(_MACHINE)
class MachineOptions:
    """Where a model runs."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ...; of several processes each has a GPU of its own."""
    dtype: DtypeName = "auto"
    """Type of the weights; auto: float32 on a CPU, else bfloat16."""


@options()
class Generate:
    """Turn prompts into videos.

    Each video gets a JSON file of the same name with all settings, versions, times and densities. Videos that are
    there already with the same settings are skipped, so an interrupted batch goes on when started again into the
    same folder (--no-timestamp); any others get the next numbers. Several processes, started by torchrun or
    accelerate launch, share the prompts.
    """

    prompts: PromptsOptions = PromptsOptions()
    output_dir: Path = Path("outputs")
    """Videos go to OUTPUT_DIR/MODEL: video_0000.mp4, video_0000.json, ...; new ones get the next numbers."""
    timestamp: bool = False
    """Make a new folder in OUTPUT_DIR/MODEL for this run."""
    overwrite: Annotated[bool, option("--overwrite")] = False
    """Number videos from 0000, and replace those that are there."""
    batch_size: Annotated[int, option(min=1)] = 1
    """How many videos to make together."""
    warm_up: Annotated[bool, option("--warmup/--no-warmup", "--warm-up/--no-warm-up")] = False
    """First run an untimed step, for fair times."""
    verbose: Annotated[bool, option("--verbose")] = False
    """Tell of every sparse attention call."""
    model: ModelOptions = ModelOptions()
    attention: AttentionOptions = AttentionOptions()
    dense: DenseOptions = DenseOptions()
    seed: Annotated[int, option(panel=_VIDEO)] = 42
    """Seed of the noise; video i uses seed + i."""
    video: VideoFileOptions = VideoFileOptions()
    machine: MachineOptions = MachineOptions()


@options()
class Compare:
    """Make the same video dense and with PSA, and show how close, how fast and how sparse it is.

    Writes comparison.json, comparison.md and report.html (to look at in a browser), and for every prompt and seed
    dense.mp4, psa.mp4 (or one a preset), side_by_side.mp4, frames.png and case.json. What is done is kept, so an
    interrupted run goes on when started again into the same folder.
    """

    prompts: PromptsOptions = PromptsOptions()
    output_dir: Path = Path("outputs/compare")
    """Folder of the results; several prompts or seeds have folders in it."""
    overwrite: Annotated[bool, option("--overwrite")] = False
    """Do again what is done already, or was done with other settings."""
    warm_up: bool = True
    """First run an untimed step each, for fair times."""
    seed: Annotated[list[int] | None, option(panel=_COMPARISON)] = None
    """Seed of the noise, 42 by default; every prompt is made with every seed. May be given repeatedly."""
    num_seeds: Annotated[int, option(panel=_COMPARISON, min=1)] = 1
    """That many seeds from --seed on."""
    ceiling: Annotated[Literal["auto", "backend", "dtype", "none"], option(panel=_COMPARISON)] = "auto"
    """Make the dense video again by another backend or in another dtype, as what to expect at best; auto: backend on a
    GPU in 16 bits, else dtype, of the weights alone on a CPU that is slow in it."""
    model: ModelOptions = ModelOptions()
    attention_preset: Annotated[list[str] | None, option(panel=_ATTENTION, metavar="NAME")] = None
    """A preset of the model, or SECTION/PRESET; by default the model's own. May be given repeatedly."""
    preset: PresetOptions = PresetOptions()
    dense: DenseOptions = DenseOptions(min_tokens=0)
    video: VideoFileOptions = VideoFileOptions()
    machine: MachineOptions = MachineOptions()


@options()
class _PrefillOptions(AttentionOptions):
    use_psa: Annotated[bool | None, option("--use-psa/--dense")] = None
    """Sparse or dense attention in the prefill. By default `psa understand` is sparse; the script is if a preset is
    named."""


@options()
class Understand:
    """Answer a question about an image or a video.

    The answer appears as it is made; then how many tokens there were, how long they took, and how much of the
    attention was sparse.
    """

    input: Annotated[Path, option(panel=_INPUT, metavar="FILE")] = REQUIRED
    """The image or video."""
    prompt: Annotated[str, option(metavar="TEXT")] = REQUIRED
    """The question."""
    type: Annotated[Literal["image", "video"], option(panel=_INPUT)] = "image"
    """What the file is."""
    preprocess_frames: Annotated[int | None, option(panel=_INPUT, min=1)] = None
    """How many evenly spread frames of a video to read; by default two a second, 4 to 768."""
    max_pixels: Annotated[int | None, option(panel=_INPUT, min=1)] = None
    """Shrink the image, or each frame, to at most this many pixels; by default to the model's own limit."""
    max_tokens: Annotated[int, option(min=1)] = 512
    """Tokens of the answer at most."""
    model: Annotated[str, option(help=_ANSWERING, panel=_ATTENTION, metavar="KEY|PATH|ID")] = QWEN2_5_VL.key
    attention: _PrefillOptions = _PrefillOptions()
    machine: MachineOptions = MachineOptions()


@options()
class _MeasuringOptions(MachineOptions):
    dtype: Annotated[DtypeName, option(help=None, panel=None)] = "auto"


@options()
class Bench:
    """Time attention of a model's shape: dense, flex_attention and PSA side by side, at growing lengths.

    Queries and keys are synthetic and attend to their surroundings; tokens are in order already, as inside a model.
    """

    shape: Annotated[str, option("--shape", "--model", help=_MEASURED)] = "wan21-720p"
    attention_preset: str | None = None
    """A preset of the shape's model, or SECTION/PRESET."""
    preset: PresetOptions = PresetOptions()
    heads: Annotated[int | None, option(min=1)] = None
    """Key heads to measure; by default one on a CPU, all on a GPU."""
    machine: _MeasuringOptions = _MeasuringOptions()
    repeats: Annotated[int, option(min=1)] = 3
    """Timed rounds; the median counts."""
    seconds: Annotated[float, option(min=1)] = 120.0
    """Begin no length that would take the run past this."""
    flex: bool = True
    """Also time compiled flex_attention."""
    tune_kernels: bool = False
    """Find the fastest tiles of the GPU kernels for the shape instead, and write them to the user's table."""
    output_dir: Path = Path("outputs/bench")
    """Folder of bench.json and bench.png."""


@options()
class _InspectedVideoOptions(VideoOptions):
    """`--steps` is what to look at."""

    num_inference_steps: Annotated[int | None, option("--num-inference-steps")] = None
    """Denoising steps of the run."""


@options()
class Inspect:
    """Show at which level each query block reads each key block, what was estimated, and what exact attention does.

    Of a generation (--prompt) or of saved tensors (--qkv). Writes inspect.json, and a PNG a layer, step and head.
    """

    prompt: str | None = None
    """What is to be seen."""
    qkv: Annotated[Path | None, option(panel=_SAVED, metavar="FILE")] = None
    """Look at the tensors q, k and v, [B, H, N, D], of a safetensors file instead of a generation."""
    output_dir: Path = Path("outputs/inspect")
    """Folder of inspect.json and the pictures."""
    layers: Annotated[str | None, option(metavar="INDEXES")] = None
    """Such as 0,2 or 0,36-39; by default three."""
    heads: Annotated[str | None, option(metavar="INDEXES")] = None
    """By default three."""
    steps: Annotated[str | None, option(metavar="INDEXES")] = None
    """Denoising steps, from 0; by default the middle sparse one."""
    query_blocks: Annotated[int, option(min=0)] = 16
    """Query blocks to compute exact attention of; 0 for none."""
    save_qkv: Annotated[bool, option("--save-qkv")] = False
    """Also write q, k and v of each layer and step, for --qkv."""
    grid: Annotated[str | None, option(panel=_SAVED, metavar="F,H,W")] = None
    """Visual tokens as frames, height and width; by default as the file says."""
    prefix_tokens: Annotated[int | None, option(panel=_SAVED, min=0)] = None
    """Text tokens before them."""
    causal: Annotated[bool, option("--causal", panel=_SAVED)] = False
    """Mask later keys."""
    model: ModelOptions = ModelOptions()
    attention_preset: Annotated[
        str | None, option("--attention-preset", "--preset", panel=_ATTENTION, metavar="NAME")
    ] = None
    """A preset of the model, or SECTION/PRESET; by default the model's own, or the file's."""
    preset: PresetOptions = PresetOptions()
    seed: Annotated[int, option(panel=_VIDEO)] = 42
    """Seed of the noise; video i uses seed + i."""
    video: _InspectedVideoOptions = _InspectedVideoOptions()
    machine: MachineOptions = MachineOptions()


@options()
class Tune:
    """Find the budgets by layer and denoising step that leave least error at a cost, or cost least for an error.

    Makes a video a prompt with dense attention, tries growing budgets on what its attention layers attended with, shows
    the curves, and writes a preset for `psa generate --config FILE --attention-preset NAME`, with a picture beside it.
    """

    output: Annotated[Path, option(metavar="FILE")] = REQUIRED
    """Presets file to write; one that psa tune wrote before keeps its other presets."""
    prompts: PromptsOptions = PromptsOptions()
    qkv: Annotated[list[Path] | None, option(panel=_SAVED, metavar="PATH")] = None
    """What `psa inspect --save-qkv` wrote, instead of prompts: a file, or a folder of them; may be given repeatedly."""
    target_error: Annotated[float | None, option(panel=_GOAL)] = None
    """Relative error of attention's output, root mean square over layers and steps."""
    target_speedup: Annotated[float | None, option(panel=_GOAL)] = None
    """Work of dense attention over that of a whole run's attention, as densities count it; no time is measured for
    it."""
    budget: Annotated[float | None, option(panel=_GOAL)] = None
    """Mean density of the steps after the warm-up."""
    preset_name: str = "psa_tuned"
    """Name of the preset to write."""
    parts: Annotated[int, option(min=1)] = 4
    """Parts of the run that get budgets of their own."""
    query_blocks: Annotated[int, option(min=1)] = 16
    """Query blocks to compute exact attention of, in each call."""
    warmup_steps: Annotated[int | None, option(min=0)] = None
    """First steps that run dense; by default as in the preset."""
    check: Annotated[bool, option("--check")] = False
    """Make the first prompt's video with the tuned preset too: its PSNR and seconds."""
    model: ModelOptions = ModelOptions()
    attention_preset: Annotated[str | None, option(panel=_ATTENTION, metavar="NAME")] = None
    """The preset to tune, a mask_mode: budget one of the model, or SECTION/PRESET; psa_budget by default."""
    preset: PresetOptions = PresetOptions()
    seed: Annotated[int, option(panel=_VIDEO)] = 42
    """Seed of the noise; video i uses seed + i."""
    video: VideoOptions = VideoOptions()
    machine: MachineOptions = MachineOptions()


@options()
class Doctor:
    """Look at packages, devices and implementations, by trying them; exit code 1 if something needed does not work."""

    as_json: Annotated[bool, option("--json")] = False
    """Print the findings as JSON."""


@options()
class Models:
    """List the models known by name: size, tokens, steps and presets, and whether their real weights were run here."""

    as_markdown: Annotated[bool, option("--markdown")] = False
    """Print the table as Markdown."""
