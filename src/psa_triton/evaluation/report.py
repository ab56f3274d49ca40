"""A comparison as files and in words."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from psa_triton.evaluation.compare import Candidate, Comparison
from psa_triton.evaluation.contact_sheet import contact_sheet
from psa_triton.evaluation.metrics import PSNR_CAP
from psa_triton.generation import DENSE, write_json
from psa_triton.video import side_by_side, write_video


def write_comparison(folder: Path, comparison: Comparison, described: dict[str, Any]) -> None:
    """Write the videos, both side by side, a sheet of frames, and all numbers; what was there before is replaced.

    Files: `dense.mp4`; `psa.mp4`, or one `LABEL.mp4` each if there are several candidates; `side_by_side.mp4`;
    `frames.png`; `comparison.json`.

    Args:
        folder: made where it does not exist.
        comparison: what to write.
        described: what else `comparison.json` is to hold, such as versions and hardware.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fps = comparison.request.fps
    frames = {candidate.label: candidate.video.frames for candidate in comparison.candidates}
    write_video(folder / "dense.mp4", comparison.dense.frames, fps=fps)
    for label in frames:
        name = "psa" if len(frames) == 1 else label.replace("/", "_")
        write_video(folder / f"{name}.mp4", frames[label], fps=fps)
    write_video(folder / "side_by_side.mp4", side_by_side({DENSE.name: comparison.dense.frames, **frames}), fps=fps)
    part = folder / "frames.part.png"
    Image.fromarray(contact_sheet(comparison.dense.frames, frames)).save(part)
    part.replace(folder / "frames.png")
    write_json(folder / "comparison.json", {**as_dict(comparison), **described})


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """All settings and numbers of a comparison as plain data."""
    return {
        "request": asdict(comparison.request),
        "psnr_cap": PSNR_CAP,
        "dense": {"cost": comparison.dense.cost.as_dict()},
        "candidates": [_candidate_dict(candidate) for candidate in comparison.candidates],
    }


def _candidate_dict(candidate: Candidate) -> dict[str, Any]:
    return {
        "label": candidate.label,
        "attention": candidate.attention.as_dict(),
        "cost": candidate.video.cost.as_dict(),
        "psnr": candidate.fidelity.psnr,
        "ssim": candidate.fidelity.ssim,
        **asdict(candidate.fidelity),
    }


def sentence(comparison: Comparison, candidate: Candidate) -> str:
    """What came out for one candidate, in plain words."""
    dense, cost, scores = comparison.dense.cost, candidate.video.cost, candidate.fidelity
    if cost.attention_density is None or cost.run_density is None:
        return (
            f"{candidate.label} ran dense throughout ({', '.join(cost.dense_reasons)}), so there is nothing to compare."
        )
    near = (
        "the same frames as dense attention"
        if min(scores.psnr_frames) >= PSNR_CAP
        else f"frames {scores.psnr:.1f} dB (PSNR) from dense attention's, SSIM {scores.ssim:.3f}"
    )
    return (
        f"{candidate.label} did {cost.attention_density:.1%} of the attention work in its sparse layers "
        f"({cost.run_density:.1%} over the whole run) and made {near}; self-attention layers took "
        f"{cost.attention_seconds:.1f} s instead of {dense.attention_seconds:.1f} s: "
        f"{_pace(dense.attention_seconds / cost.attention_seconds)}."
    )


def _pace(speedup: float) -> str:
    if 0.95 < speedup < 1.05:  # within what times vary from run to run
        return "as fast"
    return f"{speedup:.2f} times as fast" if speedup > 1 else f"{1 / speedup:.2f} times as slow"
