"""`psa inspect`: what attention read, at which level, and what it missed, as pictures and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import layer_count, transformers_of
from psa_triton.models import QWEN2_5_VL, model_key
from psa_triton.tools.cli.commands import Inspect
from psa_triton.tools.cli.console import VideoProgress, few, logging_to, make_console
from psa_triton.tools.cli.options import read_indexes, refuse
from psa_triton.tools.cli.tables import make_table, print_table
from psa_triton.tools.cli.target import attention_for_files, choose_source, find_target, load
from psa_triton.tools.evaluation.levels_record import CallSite
from psa_triton.tools.files import Staging, held, json_bytes, output_folder, staged
from psa_triton.tools.generation.attention import Attention, choose_attention
from psa_triton.tools.generation.loading import choose_device
from psa_triton.tools.generation.request import make_requests
from psa_triton.tools.generation.sidecar import settings_of, surroundings
from psa_triton.tools.generation.single import generate_video
from psa_triton.tools.inspection.exact import spread_evenly
from psa_triton.tools.inspection.inputs import AttentionInputs
from psa_triton.tools.inspection.inspect import choose_indexes, inspect_attention
from psa_triton.tools.inspection.numbers import SCHEMA_VERSION, Place, call_data, place_name, place_title, table
from psa_triton.tools.inspection.picture import draw
from psa_triton.tools.inspection.probe import Probe
from psa_triton.tools.inspection.qkv_file import qkv_bytes, read_grid, read_qkv

Asked = Mapping[str, Sequence[int] | None]
"""Indexes that were asked for, of layers, heads and steps."""

_BY_DEFAULT = 3
"""Layers, and heads, where none are asked for."""
_PICTURE = 128 << 10
"""Bytes of a picture, roughly."""


def run(options: Inspect) -> None:
    """Look at a generation, or at each batch entry of saved tensors.

    Raises:
        OSError: the folder cannot be made or written, or has no room; known before the model is loaded.
        TakenError: another process writes into it.
        ValueError: an option is wrong or goes with the other way; the preset is dense or cannot be used with these
            tensors; a layer, head or step does not exist, or runs dense.
    """
    given = {"layers": options.layers, "heads": options.heads, "steps": options.steps}
    asked = {name: None if text is None else read_indexes(name, text) for name, text in given.items()}
    if options.qkv is None:
        refuse(options, ("grid", "prefix_tokens", "causal"), "saved tensors: give --qkv FILE")
        _look_at_generation(options, asked)
        return
    of_generation = ("prompt", "layers", "steps", "save_qkv", "seed", "model", "dtype", "video")
    refuse(options, of_generation, "a generation, and --qkv looks at a file")
    _look_at_file(options, options.qkv, asked)


def _look_at_file(options: Inspect, path: Path, asked: Asked) -> None:
    device = choose_device(options.machine.device)
    file = read_qkv(path, device)
    inputs = file.inputs(
        grid=None if options.grid is None else read_grid(options.grid),
        prefix_tokens=options.prefix_tokens,
        is_causal=options.causal,
    )
    preset = options.attention_preset or file.header.get("preset")
    attention = attention_for_files(preset, options.preset, files="the file does not tell its model")
    inputs.check(_sparse(attention))
    entries, heads = inputs.q.shape[:2]
    pictures = entries * len(_choose("heads", asked, heads))
    with _Look.into(options, path.stem, attention, asked, pictures=pictures) as look:
        for entry in range(entries):
            with look.console.status(f"looking at {path.name}"):
                look.at(inputs.batch_entry(entry), {"entry": entry} if entries > 1 else {})
        look.write_numbers({"qkv": path.name, "attention": attention.as_dict()}, device)
    look.show()


def _look_at_generation(options: Inspect, asked: Asked) -> None:
    if options.prompt is None:
        raise ValueError("expected --prompt TEXT or --qkv FILE, got neither")
    if model_key(options.model.model) == QWEN2_5_VL.key:
        raise ValueError(
            f"model: expected a video model, got {options.model.model}; save its q, k, v, and give --qkv --causal"
        )
    source = choose_source(options.model)
    target = find_target(source, options.machine, options.preset.impl)
    attention = choose_attention(source, options.attention_preset, file=options.preset.config, impl=options.preset.impl)
    (request,) = make_requests(source, [options.prompt], seed=options.seed, settings=asdict(options.video))
    steps = _sparse_steps(_sparse(attention), request.num_inference_steps, asked["steps"])
    chosen = [_BY_DEFAULT if (indexes := asked[name]) is None else len(indexes) for name in ("layers", "heads")]
    pictures = math.prod((*chosen, len(steps)))
    with _Look.into(options, source.short_name, attention, asked, pictures=pictures) as look, logging_to(look.console):
        pipe = load(target, request, look.console)
        layers = _choose("layers", asked, layer_count(next(iter(transformers_of(pipe).values()))))
        repeating = _repeating(_sparse(attention), layers, steps, request.num_inference_steps)
        for layer, step in repeating:
            look.console.print(f"layer {layer} repeats an earlier output in step {step}: there is nothing to look at")

        def on_call(site: CallSite, inputs: AttentionInputs, levels: Tensor) -> None:
            second = {} if site.transformer == "transformer" else {"transformer": site.transformer}
            place: Place = {**second, "layer": site.layer, "step": site.step}
            look.at(inputs, place, levels)
            if options.save_qkv:
                look.save(inputs, place)

        with VideoProgress(look.console, 1) as progress:
            on_step = progress.start_video(request.prompt, request.num_inference_steps)
            generate_video(pipe, request, attention, on_step=on_step, on_levels=Probe(layers, steps, on_call))
        if not look.calls:
            raise ValueError(f"nothing to look at: layers {layers} ran dense in steps {steps}")
        told = {*repeating, *((call["place"]["layer"], call["place"]["step"]) for call in look.calls)}
        for layer, step in product(layers, steps):
            if (layer, step) not in told:
                look.console.print(f"layer {layer} runs dense in step {step}: there is nothing to look at")
        look.write_numbers(settings_of(target, request, attention), target.device)
    look.show()


@dataclass(kw_only=True)
class _Look:
    """How calls of a run are looked at, where their pictures and numbers go, and the numbers so far."""

    options: Inspect
    files: Staging
    subject: str
    attention: Attention
    asked: Asked
    calls: list[dict[str, Any]] = field(default_factory=list)
    console: Console = field(default_factory=make_console)

    @classmethod
    @contextmanager
    def into(
        cls, options: Inspect, subject: str, attention: Attention, asked: Asked, *, pictures: int
    ) -> Iterator[_Look]:
        """Files appear together at the end of the block; the folder is looked at first."""
        folder = options.output_dir
        with output_folder(folder, room=pictures * _PICTURE), held(folder), staged() as files:
            yield cls(options=options, files=files, subject=subject, attention=attention, asked=asked)

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.options.output_dir

    def at(self, inputs: AttentionInputs, place: Place, levels: Tensor | None = None) -> None:
        """Draw one call, and keep its numbers; `levels` are those that it read, if it has been made already."""
        config, heads = _sparse(self.attention), _choose("heads", self.asked, inputs.q.shape[1])
        blocks, impl = self.options.query_blocks, self.attention.impl
        found = inspect_attention(inputs, config, heads=heads, levels=levels, query_blocks=blocks, impl=impl)
        for head in found.heads:
            here = {**place, "head": head.head}
            title = f"{self.subject}, {place_title(here)}, {self.attention.name}"
            self.files.write(self.folder / f"{place_name(here)}.png", draw(found, head, title))
        self.calls.append(call_data(place, found))

    def save(self, inputs: AttentionInputs, place: Place) -> None:
        """Write the tensors of one call."""
        header = {"model": self.subject, "preset": self.attention.name}
        header |= {key: str(value) for key, value in place.items()}
        self.files.write(self.folder / f"qkv_{place_name(place)}.safetensors", qkv_bytes(inputs, header))

    def write_numbers(self, settings: Mapping[str, Any], device: torch.device) -> None:
        """Last of all: it names the pictures."""
        data = {"schema_version": SCHEMA_VERSION, "settings": settings, "calls": self.calls, **surroundings(device)}
        self.files.write(self.folder / "inspect.json", json_bytes(data))

    def show(self) -> None:
        """Print the numbers."""
        columns, lines = table(self.calls)
        numbers = make_table(columns, lines, column={"min_width": 5}, collapse_padding=True, pad_edge=False)
        print_table(self.console, numbers)
        first = self.calls[0]["heads"][0]
        estimate = first["density_with_estimation"] - first["density"]
        self.console.print(f"Estimating importance costs {estimate:.3f} of dense attention beside the density.")
        if first["levels"][0]["mass"] is not None:
            self.console.print(
                "Recall: exact attention of the blocks at level 1, over the most that as many could have."
            )
        self.console.print(f"Files: {self.folder}")


def _choose(name: str, asked: Asked, count: int) -> list[int]:
    """Those asked for of `count`, or a few spread evenly.

    Raises:
        ValueError: one does not exist.
    """
    indexes = asked[name]
    return choose_indexes(name, spread_evenly(count, _BY_DEFAULT) if indexes is None else indexes, count)


def _sparse(attention: Attention) -> PSAConfig:
    if attention.config is None:
        raise ValueError(f"attention_preset: expected a sparse one, got {attention.name}, which is dense")
    return attention.config


def _repeating(config: PSAConfig, layers: Sequence[int], steps: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Layers and steps in which a preset's rhythm of reuse reads no keys.

    Raises:
        ValueError: it reads none in any of them.
    """
    reuse = config.reuse
    if reuse is None or reuse.max_error is not None:
        return []

    def repeats(layer: int, step: int) -> bool:
        return step > 0 and reuse.covers(layer) and reuse.way(step, layer, count) == "broadcast"

    found = [(layer, step) for step in steps for layer in layers if repeats(layer, step)]
    if len(found) == len(layers) * len(steps):
        reading = [str(step) for step in range(count) if not all(repeats(layer, step) for layer in layers)]
        raise ValueError(
            f"steps: expected one in which a layer of {', '.join(map(str, layers))} repeats no earlier output, such as "
            f"{few(reading)}, got {', '.join(map(str, steps))}"
        )
    return found


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
