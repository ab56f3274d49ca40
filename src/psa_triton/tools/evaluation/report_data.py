"""What a report shows of a case, as plain data: frames, scores, what was read, costs."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from psa_triton.integrations.diffusers import PSAStats
from psa_triton.tools.evaluation.compare import Candidate, Comparison
from psa_triton.tools.evaluation.frame_images import encode_frames
from psa_triton.tools.evaluation.levels_record import CallSite, LevelMap, LevelRecording, TokenLayout
from psa_triton.tools.evaluation.measures import MEASURES, Fidelity
from psa_triton.tools.generation import DENSE, Cost, GeneratedVideo


def case_view(comparison: Comparison) -> dict[str, Any]:
    """All that is drawn of one case."""
    ceiling = comparison.ceiling
    others = {candidate.label: candidate.video for candidate in comparison.candidates}
    scores = {candidate.label: _scores(candidate.fidelity) for candidate in comparison.candidates}
    if ceiling is not None:
        others[ceiling.label] = ceiling.video
        scores[ceiling.label] = _scores(ceiling.fidelity)
    return {
        "video": _video(comparison, {DENSE.name: comparison.dense, **others}),
        "scores": scores,
        "measures": {name: {"label": measure.label, "digits": measure.digits} for name, measure in MEASURES.items()},
        "costs": _costs(comparison),
        "reads": {candidate.label: _reads(candidate) for candidate in comparison.candidates},
    }


def _video(comparison: Comparison, videos: Mapping[str, GeneratedVideo]) -> dict[str, Any]:
    images = encode_frames({label: video.frames for label, video in videos.items()})
    count, height, width, _ = comparison.dense.frames.shape
    size = {"width": width, "height": height, "count": count, "fps": comparison.request.fps}
    return {**size, "exact": images.exact, "frames": images.videos}


def _scores(fidelity: Fidelity) -> dict[str, list[float]]:
    """Per measure that could be taken, a number a frame."""
    return {
        name: [round(value, 4) for value in score.frames] for name, score in fidelity.scores.items() if score.frames
    }


def _costs(comparison: Comparison) -> list[dict[str, Any]]:
    """Where time and attention's work went, a bar a video."""
    dense = comparison.dense
    bars = [{"label": DENSE.name, "seconds": _seconds(dense.cost, None), "work": _work(dense.stats)}]
    for candidate in comparison.candidates:
        video = candidate.video
        seconds = _seconds(video.cost, candidate.level_choice_seconds)
        bars.append({"label": candidate.label, "seconds": seconds, "work": _work(video.stats)})
    return bars


def _seconds(cost: Cost, level_choice: float | None) -> dict[str, float]:
    choice = min(level_choice or 0.0, cost.sparse_attention_seconds)
    parts = {
        "choosing levels": choice,
        "sparse attention": cost.sparse_attention_seconds - choice,
        "dense attention": cost.dense_attention_seconds,
        "rest of the transformer": cost.transformer_seconds - cost.attention_seconds,
        "outside the transformer": cost.total_seconds - cost.transformer_seconds,
    }
    return {name: round(max(0.0, value), 4) for name, value in parts.items()}


def _work(stats: PSAStats) -> dict[str, float]:
    """Multiply-adds of self-attention as shares of what they are if all of it is dense."""
    work = {"choosing levels": 0.0, "sparse attention": 0.0, "dense attention": 0.0}
    total = sum(record.calls * record.tokens**2 for record in stats.records)
    for record in stats.records:
        share = record.calls * record.tokens**2 / total
        work["sparse attention" if record.sparse else "dense attention"] += share * record.density
        work["choosing levels"] += share * (record.density_with_estimation - record.density)
    return {name: round(value, 6) for name, value in work.items()}


def _reads(candidate: Candidate) -> dict[str, Any]:
    """Densities of every layer, head and step, and the level maps that were kept."""
    recording, records = candidate.recording, candidate.video.stats.records
    layers = sorted({(record.transformer, record.layer) for record in records})
    steps = 1 + max((record.step or 0 for record in records), default=0)
    reasons = {(r.transformer, r.layer, r.step or 0): r.reason for r in records if not r.sparse}
    densities = recording.densities

    def cell(site: CallSite) -> list[float] | str | None:
        """Density of each head; why the call was dense; None where there was no call."""
        return [round(value, 4) for value in densities[site]] if site in densities else reasons.get(site)

    return {
        "steps": steps,
        "layers": [{"transformer": transformer, "layer": layer} for transformer, layer in layers],
        "density": [[cell(CallSite(*layer, step)) for step in range(steps)] for layer in layers],
        "layout": None if recording.layout is None else _layout(recording.layout, recording),
        "maps": _maps(recording.maps, layers),
    }


def _layout(layout: TokenLayout, recording: LevelRecording) -> dict[str, Any]:
    assert recording.shape is not None  # known with the layout
    order = layout.order
    return {
        "grid": list(layout.grid),
        "prefix": layout.prefix_tokens,
        "block_m": layout.block_m,
        "block_n": layout.block_n,
        "query_blocks": recording.shape[2],
        "key_blocks": recording.shape[3],
        "in_place": layout.in_place,
        "order": None if order is None else _compressed([order.permutation.to(torch.int32).numpy()]),
    }


def _maps(maps: Mapping[CallSite, LevelMap], layers: list[tuple[str, int]]) -> dict[str, Any]:
    """Where each map stands in the one block of bytes that holds all of them, two codes a byte."""
    index, offset = [], 0
    for site, entry in sorted(maps.items()):
        layer = layers.index((site.transformer, site.layer))
        index.append({"layer": layer, "step": site.step, "heads": list(entry.heads), "offset": offset})
        offset += entry.packed.numel()
    return {"index": index, "codes": _compressed(entry.packed.numpy() for _, entry in sorted(maps.items()))}


def _compressed(arrays: Iterable[np.ndarray]) -> str:
    """Little-endian bytes of the arrays, one after another, by zlib and base64."""
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")
