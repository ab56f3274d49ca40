"""`psa understand`, and the script of `qwen2.5-vl-example`: questions about an image or a video."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from psa_triton.models import QWEN2_5_VL
from psa_triton.tools.cli import options

if TYPE_CHECKING:
    from psa_triton.impl import Impl
    from psa_triton.tools.generation import Attention
    from psa_triton.tools.understanding import Answer, Media, Prompt

_INPUT = "Image or video"
_MODEL = "Model and attention"

Input = Annotated[Path, typer.Option("--input", metavar="FILE", help="The image or video.", rich_help_panel=_INPUT)]
Type = Annotated[Literal["image", "video"], typer.Option("--type", help="What the file is.", rich_help_panel=_INPUT)]
PreprocessFrames = Annotated[
    int | None,
    typer.Option(
        "--preprocess-frames",
        min=1,
        help="How many evenly spread frames of a video to read; by default two a second, 4 to 768.",
        rich_help_panel=_INPUT,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        help="Shrink the image, or each frame, to at most this many pixels; by default to the model's own limit.",
        rich_help_panel=_INPUT,
    ),
]
Question = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="The question.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of the answer at most.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="KEY|PATH|ID",
        help=f"{QWEN2_5_VL.key}, or another Qwen2.5-VL or Qwen2-VL: a folder or a hub id.",
        rich_help_panel=_MODEL,
    ),
]
UsePsa = Annotated[
    bool | None,
    typer.Option(
        "--use-psa/--dense",
        help="Sparse or dense attention in the prefill. By default `psa understand` is sparse; the script is if a "
        "preset is named.",
        rich_help_panel=_MODEL,
    ),
]


def make_understand(*, use_psa: bool) -> Callable[..., None]:
    """The function of a command that answers a question: its parameters are the command's options.

    Args:
        use_psa: sparse attention where the command line names neither that nor a preset.
    """
    sparse_by_default = use_psa

    def understand(
        input: Input,
        prompt: Question,
        type: Type = "image",
        preprocess_frames: PreprocessFrames = None,
        max_pixels: MaxPixels = None,
        max_tokens: MaxTokens = 512,
        model: Model = QWEN2_5_VL.key,
        use_psa: UsePsa = None,
        attention_preset: options.AttentionPreset = None,
        config: options.PresetsPath = None,
        impl: options.Implementation = "auto",
        device: options.Device = "auto",
        dtype: options.Dtype = "auto",
    ) -> None:
        """Answer a question about an image or a video.

        The answer appears as it is made; then how many tokens there were, how long they took, and how much of the
        attention was sparse.
        """
        # Here and not above: torch and transformers take seconds to import.
        import torch
        from rich.console import Console

        from psa_triton.impl import resolve_impl
        from psa_triton.tools.cli.target import no_loading_bars
        from psa_triton.tools.generation import choose_device, choose_dtype
        from psa_triton.tools.understanding import answer_prompt, check_media, find_checkpoint, make_prompt, read_media

        if use_psa is None:
            use_psa = sparse_by_default or attention_preset is not None
        attention = _attention(attention_preset, use_psa, config, impl)
        place = choose_device(device)
        resolve_impl(impl, torch.empty(0, device=place))
        weights = choose_dtype(dtype, place)
        check_media(input, type, num_frames=preprocess_frames)
        checkpoint = find_checkpoint(model, max_pixels=max_pixels)
        media = read_media(input, type, num_frames=preprocess_frames)
        model_input = make_prompt(checkpoint, media, prompt, max_tokens=max_tokens)
        console = Console(highlight=False, markup=False, soft_wrap=True)
        with console.status(f"loading {model}"), no_loading_bars():
            loaded = checkpoint.load_weights(device=place, dtype=weights)
        answer = answer_prompt(
            loaded,
            checkpoint.tokenizer,
            model_input,
            attention,
            max_tokens=max_tokens,
            on_text=lambda text: console.print(text, end=""),
        )
        console.print(f"\n\n{_summary(media, model_input, answer, attention)}")

    return understand


understand = make_understand(use_psa=True)
"""The function of `psa understand`."""


def _attention(preset: str | None, use_psa: bool, config: Path | None, impl: Impl) -> Attention:
    from psa_triton.tools.generation import DENSE
    from psa_triton.tools.understanding import choose_attention

    if use_psa:
        return choose_attention(preset, file=config, impl=impl)
    if preset is not None or config is not None:
        raise ValueError("expected --use-psa with --attention-preset or --config, got dense attention")
    return DENSE


def _summary(media: Media, prompt: Prompt, answer: Answer, attention: Attention) -> str:
    """What was read, how long it took, and how much of the attention was sparse."""
    time, height, width = prompt.grid
    read = f"{len(media.frames)} of {media.total_frames} frames" if media.kind == "video" else "1 image"
    speed = "" if answer.tokens_per_second is None else f", {answer.tokens_per_second:.1f} tokens/s"
    return "\n".join(
        (
            f"{media.kind}: {read}, {time}x{height}x{width} patches, {prompt.visual_tokens} visual tokens",
            f"prompt: {prompt.tokens} tokens, prefill {answer.prefill_seconds:.2f} s",
            f"answer: {answer.tokens} tokens{speed}",
            f"attention: {attention.name}{_sparsity(answer)}",
        )
    )


def _sparsity(answer: Answer) -> str:
    """How sparse the prefill was, or why it was dense; nothing where PSA had no part in it."""
    if answer.attention is None:
        return ""
    from psa_triton.integrations.transformers.stats import DECODE

    layers = [record for record in answer.attention.records if record.part == "text" and record.reason != DECODE]
    sparse = sum(record.sparse for record in layers)
    reasons = ", ".join(sorted({record.reason for record in layers if record.reason is not None}))
    if sparse == 0:
        return f"; all of the prefill was dense: {reasons}"
    summary = answer.attention.summary
    line = (
        f"; sparse in {sparse} of {len(layers)} layers of the prefill, density there {summary.sparse_density:.1%}, "
        f"{summary.sparse_density_with_estimation:.1%} with estimation"
    )
    return f"{line}; dense in the others: {reasons}" if reasons else line
