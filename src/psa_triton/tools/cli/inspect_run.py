"""A run of `psa inspect`: the calls that are looked at, their pictures and numbers, and a table of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import layer_count
from psa_triton.tools.cli.progress import VideoProgress, logging_to
from psa_triton.tools.cli.target import Target
from psa_triton.tools.evaluation import CallSite
from psa_triton.tools.files import Hold, Staging, output_folder, staged
from psa_triton.tools.generation import Attention, VideoRequest, generate_video, settings_of, surroundings
from psa_triton.tools.generation.sidecar import json_bytes
from psa_triton.tools.inspection import (
    SCHEMA_VERSION,
    AttentionInputs,
    Place,
    Probe,
    call_data,
    choose_indexes,
    draw,
    inspect_attention,
    place_name,
    place_title,
    table,
    write_qkv,
)
from psa_triton.tools.inspection.exact import spread_evenly

_BY_DEFAULT = 3
"""Layers, and heads, where none are asked for."""
_PICTURE = 128 << 10
"""Bytes of a picture, roughly."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to look at; None for a few."""

    layers: Sequence[int] | None
    heads: Sequence[int] | None
    steps: Sequence[int] | None
    query_blocks: int

    def choose(self, name: Literal["layers", "heads"], count: int) -> list[int]:
        """Those asked for of `count`, or a few spread evenly.

        Raises:
            ValueError: one does not exist.
        """
        asked: Sequence[int] | None = getattr(self, name)
        return choose_indexes(name, spread_evenly(count, _BY_DEFAULT) if asked is None else asked, count)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """How calls of a run are looked at, and where pictures of them go."""

    folder: Path
    files: Staging
    subject: str
    attention: Attention
    heads: Sequence[int]
    query_blocks: int

    def at(self, inputs: AttentionInputs, place: Place, levels: Tensor | None = None) -> dict[str, Any]:
        """Draw one call, and return its numbers; `levels` are those that it read, if it has been made already."""
        inspection = inspect_attention(
            inputs,
            _sparse(self.attention),
            heads=self.heads,
            levels=levels,
            query_blocks=self.query_blocks,
            impl=self.attention.impl,
        )
        for head in inspection.heads:
            title = f"{self.subject}, {place_title(place, head.head)}, {self.attention.name}"
            draw(inspection, head, title, self.folder / f"{place_name(place, head.head)}.png", self.files.write)
        return call_data(place, inspection)


@dataclass(frozen=True)
class InspectRun:
    """What to look at, and the folder that it goes to."""

    folder: Path
    selection: Selection
    console: Console = field(default_factory=lambda: Console(highlight=False, markup=False, soft_wrap=True))

    def look_at_file(self, file: Path, inputs: AttentionInputs, attention: Attention, device: torch.device) -> None:
        """Each batch entry of saved tensors.

        Raises:
            ValueError: the preset is dense or cannot be used with these tensors, or a head does not exist.
        """
        inputs.check(_sparse(attention))
        heads = self.selection.choose("heads", inputs.q.shape[1])
        entries = inputs.q.shape[0]
        calls = []
        with self._written(entries * len(heads)) as files:
            look = self._look(file.stem, attention, heads, files)
            for entry in range(entries):
                with self.console.status(f"looking at {file.name}"):
                    calls.append(look.at(inputs.batch_entry(entry), {"entry": entry} if entries > 1 else {}))
            settings = {"qkv": file.name, "attention": attention.as_dict()}
            self._write_numbers(calls, settings, device, files)
        self._show(calls)

    def look_at_generation(
        self, target: Target, request: VideoRequest, attention: Attention, *, save_qkv: bool
    ) -> None:
        """Chosen layers and steps of a generation.

        Raises:
            ValueError: the preset is dense; a layer, head or step does not exist; or a step runs dense.
        """
        steps = _sparse_steps(_sparse(attention), request.num_inference_steps, self.selection.steps)
        calls: list[dict[str, Any]] = []
        selection = self.selection
        chosen = (len(x) if x is not None else _BY_DEFAULT for x in (selection.layers, selection.heads))
        with self._written(math.prod((*chosen, len(steps)))) as files, logging_to(self.console, verbose=False):
            pipe = target.load(request, self.console)
            layers = self.selection.choose("layers", layer_count(pipe.transformer))
            heads = self.selection.choose("heads", pipe.transformer.config["num_attention_heads"])
            look = self._look(target.source.short_name, attention, heads, files)

            def on_call(site: CallSite, inputs: AttentionInputs, levels: Tensor) -> None:
                place = _place(site)
                calls.append(look.at(inputs, place, levels))
                if save_qkv:
                    header = {"model": look.subject, "preset": attention.name}
                    header |= {key: str(value) for key, value in place.items()}
                    write_qkv(self.folder / f"qkv_{place_name(place)}.safetensors", inputs, header, files.write)

            with VideoProgress(self.console, 1) as progress:
                on_step = progress.start_video(request.prompt, request.num_inference_steps)
                generate_video(pipe, request, attention, on_step=on_step, on_levels=Probe(layers, steps, on_call))
            if not calls:
                raise ValueError(f"nothing to look at: layers {layers} ran dense in steps {steps}")
            settings = settings_of(
                target.source, request, attention, device=target.device, dtype=target.dtype, lora=target.lora
            )
            self._write_numbers(calls, settings, target.device, files)
        self._show(calls)

    @contextmanager
    def _written(self, pictures: int) -> Iterator[Staging]:
        """Files of this run, which appear together at its end; the folder is looked at first."""
        with output_folder(self.folder, room=pictures * _PICTURE), Hold(self.folder), staged() as files:
            yield files

    def _look(self, subject: str, attention: Attention, heads: Sequence[int], files: Staging) -> _Look:
        return _Look(
            folder=self.folder,
            files=files,
            subject=subject,
            attention=attention,
            heads=heads,
            query_blocks=self.selection.query_blocks,
        )

    def _write_numbers(
        self, calls: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], device: torch.device, files: Staging
    ) -> None:
        """Last of all: it names the pictures."""
        data = {"schema_version": SCHEMA_VERSION, "settings": settings, "calls": calls, **surroundings(device)}
        files.write(self.folder / "inspect.json", json_bytes(data))

    def _show(self, calls: Sequence[Mapping[str, Any]]) -> None:
        columns, lines = table(calls)
        shown = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        for column in columns:
            shown.add_column(column, justify="right", min_width=5)
        for line in lines:
            shown.add_row(*line)
        self.console.print(shown)
        first = calls[0]["heads"][0]
        estimate = first["density_with_estimation"] - first["density"]
        self.console.print(f"Estimating importance costs {estimate:.3f} of dense attention beside the density.")
        if first["levels"][0]["mass"] is not None:
            self.console.print(
                "Recall: exact attention of the blocks at level 1, over the most that as many could have."
            )
        self.console.print(f"Files: {self.folder}")


def _sparse(attention: Attention) -> PSAConfig:
    if attention.config is None:
        raise ValueError(f"attention_preset: expected a sparse one, got {attention.name}, which is dense")
    return attention.config


def _sparse_steps(config: PSAConfig, count: int, asked: Sequence[int] | None) -> list[int]:
    """Steps to look at: those asked for, or the middle one of those that run sparse."""
    first = config.warmup_steps
    if first >= count:
        raise ValueError(
            f"num_inference_steps: expected more than the {first} warm-up steps of the preset, which run dense, "
            f"got {count}"
        )
    if asked is None:
        return [(first + count) // 2]
    chosen = choose_indexes("steps", asked, count)
    if dense := [step for step in chosen if step < first]:
        raise ValueError(
            f"steps: expected some from {first} to {count - 1}, as the preset's warm-up runs dense, "
            f"got {', '.join(map(str, dense))}"
        )
    return chosen


def _place(site: CallSite) -> dict[str, int | str]:
    second = {} if site.transformer == "transformer" else {"transformer": site.transformer}
    return {**second, "layer": site.layer, "step": site.step}
