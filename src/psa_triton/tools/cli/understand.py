"""`psa understand`, and the script of `qwen2.5-vl-example`: questions about an image or a video."""

from __future__ import annotations

from functools import partial

from psa_triton.integrations.transformers.stats import DECODE
from psa_triton.models import QWEN2_5_VL
from psa_triton.tools.cli.commands import Understand
from psa_triton.tools.cli.console import make_console
from psa_triton.tools.cli.options import refuse
from psa_triton.tools.cli.target import find_place, loading, wanted_attention
from psa_triton.tools.generation.attention import Attention, named_attention
from psa_triton.tools.understanding import (
    Answer,
    Media,
    Prompt,
    answer_prompt,
    check_media,
    find_checkpoint,
    make_prompt,
    read_media,
)


def run(options: Understand, *, sparse: bool = True) -> None:
    """Answer a question; `sparse` tells of attention where the options name neither a preset nor that.

    Raises:
        OSError: a file is missing or damaged, or the model is not on this machine and cannot be fetched.
        ValueError: an option is wrong, or the question does not fit into the model's context.
    """
    attention = wanted_attention(
        options.attention, partial(named_attention, section=QWEN2_5_VL.preset_section), sparse=sparse
    )
    device, dtype = find_place(options.machine, options.attention.preset.impl)
    if options.type == "image":
        refuse(options, ("preprocess_frames",), "videos: give --type video")
    check_media(options.input, options.type, num_frames=options.preprocess_frames)
    checkpoint = find_checkpoint(options.model, max_pixels=options.max_pixels)
    media = read_media(options.input, options.type, num_frames=options.preprocess_frames)
    prompt = make_prompt(checkpoint, media, options.prompt, max_tokens=options.max_tokens)
    console = make_console()
    with loading(options.model, console):
        model = checkpoint.load_weights(device=device, dtype=dtype)
    show = partial(console.print, end="")
    answer = answer_prompt(model, checkpoint.tokenizer, prompt, attention, max_tokens=options.max_tokens, on_text=show)
    console.print(f"\n\n{_summary(media, prompt, answer, attention)}")


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
