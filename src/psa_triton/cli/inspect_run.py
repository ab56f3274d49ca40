"""A run of `psa inspect`: the calls that are looked at, their pictures and numbers, and a table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from psa_triton.cli.options import Target, logging_to
from psa_triton.cli.progress import VideoProgress
from psa_triton.config import PSAConfig
from psa_triton.evaluation import CallSite
from psa_triton.generation import VideoRequest, generate_video, settings_of, surroundings, write_json
from psa_triton.generation.attention import Attention
from psa_triton.inspection import (
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
from psa_triton.inspection.exact import spread_evenly
from psa_triton.integrations.diffusers.tap import QKVTap

_BY_DEFAULT = 3
"""Layers, and heads, where none are asked for."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to look at; None for a few."""

    layers: Sequence[int] | None
    heads: Sequence[int] | None
    steps: Sequence[int] | None
    query_blocks: int

    def choose(self, name: str, asked: Sequence[int] | None, count: int) -> list[int]:
        """Those asked for, or a few spread evenly.

        Raises:
            ValueError: one does not exist.
        """
        return choose_indexes(name, spread_evenly(count, _BY_DEFAULT) if asked is None else asked, count)


@dataclass
class InspectRun:
    """Looks at calls one after another and writes what it sees."""

    folder: Path
    selection: Selection
    console: Console = field(default_factory=lambda: Console(highlight=False, markup=False, soft_wrap=True))
    calls: list[dict[str, Any]] = field(default_factory=list, init=False)

    def look_at_file(self, file: Path, inputs: AttentionInputs, attention: Attention, device: torch.device) -> None:
        """Each batch entry of saved tensors.

        Raises:
            ValueError: the preset is dense or cannot be used with these tensors, or a head does not exist.
        """
        config = _sparse(attention)
        heads = self.selection.choose("heads", self.selection.heads, inputs.q.shape[1])
        inputs.orders(config)  # whether they can be made, before there is a folder
        self._start()
        entries = inputs.q.shape[0]
        for entry in range(entries):
            place = {"entry": entry} if entries > 1 else {}
            with self.console.status(f"looking at {file.name}"):
                self._look(inputs.batch_entry(entry), config, attention, heads, place)
        self._finish({"qkv": file.name, "attention": attention.as_dict()}, device)

    def look_at_generation(
        self, target: Target, request: VideoRequest, attention: Attention, *, save_qkv: bool
    ) -> None:
        """Chosen layers and steps of a generation.

        Raises:
            ValueError: the preset is dense; a layer, head or step does not exist; or a step runs dense.
        """
        steps = _sparse_steps(_sparse(attention), request.num_inference_steps, self.selection.steps)
        with logging_to(self.console, verbose=False):
            pipe = target.load(request, self.console)
            layers = self.selection.choose("layers", self.selection.layers, _layer_count(pipe))
            heads = self.selection.choose("heads", self.selection.heads, _head_count(pipe))
            self._start()

            def on_call(site: CallSite, inputs: AttentionInputs, config: PSAConfig, levels: Tensor) -> None:
                place = _place(site)
                self._look(inputs, config, attention, heads, place, levels)
                if save_qkv:
                    header = {key: str(value) for key, value in place.items()} | {"model": target.source.short_name}
                    name = "_".join(["qkv", place_name(place)])
                    write_qkv(self.folder / f"{name}.safetensors", inputs, header | {"preset": attention.name})

            with QKVTap(pipe) as tap, VideoProgress(self.console, 1) as progress:
                probe = Probe(tap, layers, steps, on_call)
                on_step = progress.start_video(request.prompt, request.num_inference_steps)
                generate_video(pipe, request, attention, on_step=on_step, on_levels=probe)
        if not self.calls:
            raise ValueError(f"nothing to look at: layers {layers} ran dense in steps {steps}")
        settings = settings_of(
            target.source, request, attention, device=target.device, dtype=target.dtype, lora=target.lora
        )
        self._finish(settings, target.device)

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "inspect.json").unlink(missing_ok=True)  # it names its pictures: not those of another run

    def _look(
        self,
        inputs: AttentionInputs,
        config: PSAConfig,
        attention: Attention,
        heads: Sequence[int],
        place: Place,
        levels: Tensor | None = None,
    ) -> None:
        """Numbers and pictures of one call."""
        inspection = inspect_attention(
            inputs,
            config,
            heads=heads,
            levels=levels,
            query_blocks=self.selection.query_blocks,
            impl=attention.impl,
        )
        for head in inspection.heads:
            title = f"{attention.name}, {place_title(place, head.head)}"
            draw(inspection, head, title, self.folder / f"{place_name(place, head.head)}.png")
        self.calls.append(call_data(place, inspection))

    def _finish(self, settings: Mapping[str, Any], device: torch.device) -> None:
        data = {"schema_version": SCHEMA_VERSION, "settings": settings, "calls": self.calls, **surroundings(device)}
        write_json(self.folder / "inspect.json", data)
        columns, lines = table(self.calls)
        shown = Table(box=SIMPLE_HEAD)
        for column in columns:
            shown.add_column(column, justify="right")
        for line in lines:
            shown.add_row(*line)
        self.console.print(shown)
        first = self.calls[0]["heads"][0]
        estimate = first["density_with_estimation"] - first["density"]
        self.console.print(
            f"Estimating importance costs {estimate:.3f} of dense attention beside the density. Recall: exact attention "
            "of the blocks at level 1, over the most that so many could have."
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


def _layer_count(pipe: DiffusionPipeline) -> int:
    """Attention layers that PSA is attached to; those of VACE's control blocks come last."""
    config = pipe.transformer.config
    return config["num_layers"] + len(config.get("vace_layers") or ())


def _head_count(pipe: DiffusionPipeline) -> int:
    return pipe.transformer.config["num_attention_heads"]


def _place(site: CallSite) -> dict[str, int | str]:
    second = {} if site.transformer == "transformer" else {"transformer": site.transformer}
    return {**second, "layer": site.layer, "step": site.step}
