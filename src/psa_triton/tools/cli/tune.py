"""`psa tune`: a budget for each layer and part of a run, as a preset of the user's own."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Final

import torch
from diffusers import DiffusionPipeline
from rich.console import Console
from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import layer_count, transformers_of
from psa_triton.tools.cli.commands import Tune
from psa_triton.tools.cli.console import VideoProgress, logging_to, make_console
from psa_triton.tools.cli.errors import told_if_interrupted
from psa_triton.tools.cli.options import refuse
from psa_triton.tools.cli.tables import make_table, print_table
from psa_triton.tools.cli.target import attention_for_files, choose_source, find_target, load, read_prompts
from psa_triton.tools.evaluation.levels_record import CallSite
from psa_triton.tools.evaluation.measures.pixels import psnr
from psa_triton.tools.files import held, output_folder, staged
from psa_triton.tools.generation.attention import DENSE, Attention, choose_attention
from psa_triton.tools.generation.loading import Target, choose_device
from psa_triton.tools.generation.request import VideoRequest, make_requests
from psa_triton.tools.generation.single import generate_video
from psa_triton.tools.inspection.inputs import AttentionInputs
from psa_triton.tools.inspection.probe import READ_ALL, Probe
from psa_triton.tools.inspection.qkv_file import QKVFile, read_qkv
from psa_triton.tools.tuning.allocation import Cell, Goal, make_cells, one_budget
from psa_triton.tools.tuning.curve import Curve, measure_curve, root_mean_square
from psa_triton.tools.tuning.picture import draw
from psa_triton.tools.tuning.plan import RunPart, parts_around, parts_of_run
from psa_triton.tools.tuning.preset import presets_with, tuned_config

_BASE: Final = "psa_budget"
_FEW_LAYERS = 12
_ROOM = 1 << 18
"""Bytes of the presets file and the picture, roughly."""

Measured = defaultdict[tuple[int, int], list[Curve]]
"""Curves by part and layer."""


def run(options: Tune) -> None:
    """Tune on a generation or on saved tensors, and write the preset.

    Raises:
        OSError: the file cannot be written; known before the model is loaded.
        ValueError: an option is wrong or goes with the other way, the preset is in no budget mode, the goal is out of
            reach, or a file does not tell its layer or holds no values.
    """
    wishes = {"budget": options.budget, "speedup": options.target_speedup, "error": options.target_error}
    goal = None if set(wishes.values()) == {None} else Goal(**wishes)
    if not options.qkv:
        prompts = read_prompts(options.prompts)
        source = choose_source(options.model)
        target = find_target(source, options.machine, options.preset.impl)
        file, impl = options.preset.config, options.preset.impl
        base = choose_attention(source, options.attention_preset or _BASE, file=file, impl=impl)
        requests = make_requests(source, prompts, seed=options.seed, settings=asdict(options.video))
        _Tuning.of(options, base, goal).on_model(target, requests)
        return
    of_run = replace(options, video=replace(options.video, num_inference_steps=None))
    refuse(
        of_run,
        ("prompts", "check", "seed", "parts", "model", "dtype", "video"),
        "a generation, and --qkv looks at files",
    )
    device = choose_device(options.machine.device)
    files = {path: read_qkv(path, device) for path in _files(options.qkv)}
    preset = options.attention_preset or _preset_of(files.values())
    base = attention_for_files(preset, options.preset, files="the files do not tell one model")
    _Tuning.of(options, base, goal).on_files(files)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders, by name.

    Raises:
        ValueError: a folder has none.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"qkv: expected safetensors files in {path}, found none")
        files += inside
    return files


def _preset_of(files: Iterable[QKVFile]) -> str | None:
    """The preset to tune, of the section that the files' own presets are of; None if they are not of one."""
    sections = {file.header.get("preset", "").partition("/")[0] for file in files}
    return f"{min(sections)}/{_BASE}" if len(sections) == 1 and all(sections) else None


@dataclass(frozen=True)
class _Tuning:
    """What is tuned, the configuration of `base`, and towards what."""

    options: Tune
    base: Attention
    config: PSAConfig
    goal: Goal
    console: Console = field(default_factory=make_console)

    @classmethod
    def of(cls, options: Tune, base: Attention, goal: Goal | None) -> _Tuning:
        """Towards the preset's own budget without a `goal`."""
        config, steps = base.config, options.warmup_steps
        if config is None or config.mask_mode != "budget":
            raise ValueError(f"attention_preset: expected one with mask_mode: budget, got {base.name}")
        config = config if steps is None else config.replace(warmup_steps=steps)
        return cls(options, base, config, goal or Goal(budget=config.budget))

    def on_model(self, target: Target, requests: Sequence[VideoRequest]) -> None:
        """Tune on what the model attends with while it makes videos, densely."""
        began = time.perf_counter()
        steps = requests[0].num_inference_steps
        chosen = parts_of_run(steps, warmup=self.config.warmup_steps, count=self.options.parts)
        part_of = {part.measured: index for index, part in enumerate(chosen)}
        measured: Measured = defaultdict(list)

        def on_call(site: CallSite, inputs: AttentionInputs, _: Tensor) -> None:
            measured[part_of[site.step], site.layer].append(self._curve(inputs))

        with self._begun(steps), logging_to(self.console):
            pipe = load(target, requests[0], self.console)
            dense = Attention(name="dense, tapped", config=READ_ALL, impl=self.base.impl)
            with VideoProgress(self.console, len(requests)) as progress:
                for request in requests:
                    on_step = progress.start_video(request.prompt, steps)
                    transformer = next(iter(transformers_of(pipe).values()))
                    probe = Probe(range(layer_count(transformer)), part_of, on_call)
                    generate_video(pipe, request, dense, on_step=on_step, on_levels=probe)
                    progress.end_video()
            tuned, uniform = self._finish(make_cells(measured, chosen), chosen, steps)
            if self.options.check:
                output = self.options.output
                with told_if_interrupted(lambda: f"the preset is in {output}; its check was not finished"):
                    self._check(pipe, requests[0], {"one budget": uniform, self.options.preset_name: tuned})
        self.console.print(f"{time.perf_counter() - began:.0f} s in all")

    def on_files(self, files: Mapping[Path, QKVFile]) -> None:
        """Tune on saved tensors of a run; where they are all of one step, its number of steps need not be known."""
        warmup, steps = self.config.warmup_steps, self.options.video.num_inference_steps
        places = {path: _place(path, file) for path, file in files.items()}
        found = sorted({step for _, step in places.values()})
        if steps is None:
            if found != [0]:
                raise ValueError("num_inference_steps: expected it, as the files are of denoising steps")
            steps = 1 + warmup
            places, found = {path: (layer, steps - 1) for path, (layer, _) in places.items()}, [steps - 1]
        parts = parts_around(found, steps, warmup=warmup)
        measured: Measured = defaultdict(list)
        with self._begun(steps):
            for path, file in files.items():
                layer, step = places[path]
                inputs = file.inputs()
                with self.console.status(f"measuring {path.name}"):
                    for entry in range(inputs.q.shape[0]):
                        measured[found.index(step), layer].append(self._curve(inputs.batch_entry(entry)))
            self._finish(make_cells(measured, parts), parts, steps)

    @property
    def _section(self) -> str:
        return self.base.name.partition("/")[0]

    @contextmanager
    def _begun(self, steps: int) -> Iterator[None]:
        """Everything that may go wrong is to do so before the work starts; nobody else edits the file meanwhile."""
        output = self.options.output
        self.goal.check(steps=steps, warmup=self.config.warmup_steps)
        self._file(self.config)
        with output_folder(output.absolute().parent, room=_ROOM, option="output"), held(output):
            yield

    def _file(self, config: PSAConfig) -> bytes:
        base = self.options.preset.config
        return presets_with(self.options.output, self._section, self.options.preset_name, config, base=base)

    def _curve(self, inputs: AttentionInputs) -> Curve:
        return measure_curve(inputs, self.config, query_blocks=self.options.query_blocks, impl=self.base.impl)

    def _finish(self, cells: Sequence[Cell], parts: Sequence[RunPart], steps: int) -> tuple[PSAConfig, PSAConfig]:
        """Choose, show and write; returns the tuned configuration, and the one with one budget at the same cost."""
        chosen = self.goal.reach(cells, steps=steps, warmup=self.config.warmup_steps)
        budget, uniform = one_budget(cells, chosen.cost)
        words = (
            f"Tuned by psa tune: error {chosen.error:.4f} expected at a mean density of {chosen.cost:.3f}; "
            f"one budget of {budget:.3f} for all {uniform.error:.4f}."
        )
        tuned = tuned_config(self.config, cells, parts, chosen, steps=steps, words=words)
        self._show(cells, parts, tuned)
        warmup = self.config.warmup_steps
        whole = (warmup + chosen.cost * (steps - warmup)) / steps
        dense = f", {warmup} of {steps} steps dense" if warmup else ""
        self.console.print(words)
        self.console.print(
            f"Whole run{dense}: density {whole:.3f}, {1 / whole:.2f} times less work in attention than dense by this "
            "count; times depend on the machine."
        )
        output, preset = self.options.output, self.options.preset_name
        title = f"{self._section}/{preset}"
        picture = output.with_name(f"{output.stem}_{preset}.png")
        with staged() as files:
            files.write(output, self._file(tuned))
            files.write(picture, draw(cells, parts, chosen, uniform, f"{title}, from {self.base.name}"))
        self.console.print(f"Preset {title} is in {output}, the curves in {picture}")
        return tuned, self.config.replace(budget=budget, budget_table=())

    def _show(self, cells: Sequence[Cell], parts: Sequence[RunPart], tuned: PSAConfig) -> None:
        rows = []
        for points in zip(*(cell.measured for cell in cells), strict=True):
            errors = [point.error for point in points]
            numbers = root_mean_square(errors), min(errors), max(errors)
            density = fmean(point.cost for point in points)
            rows.append([f"{points[0].budget:g}", f"{density:.3f}", *(f"{x:.4f}" for x in numbers)])
        columns: Sequence[str] = ("budget", "density", "root mean square", "least", "greatest")
        print_table(self.console, make_table(columns, rows, title="Error by budget, over layers and parts"))
        tables = [line.budgets for line in tuned.budget_table]
        columns = tuple(f"layer {layer}" for layer in range(len(tables[0])))
        if len(columns) > _FEW_LAYERS:
            columns, tables = ("mean", "least", "greatest"), [(fmean(x), min(x), max(x)) for x in tables]
        rows = [[str(part), *(f"{x:.3f}" for x in budgets)] for part, budgets in zip(parts, tables, strict=True)]
        print_table(self.console, make_table(("steps", *columns), rows, title="Budgets chosen"))

    def _check(self, pipe: DiffusionPipeline, request: VideoRequest, configs: Mapping[str, PSAConfig]) -> None:
        """Make one video densely and with each configuration, and show how close and how fast it is."""
        ways = [DENSE, *(replace(self.base, name=name, config=config) for name, config in configs.items())]
        rows = []
        with VideoProgress(self.console, len(ways)) as progress:
            for attention in ways:
                on_step = progress.start_video(attention.name, request.num_inference_steps)
                video = generate_video(pipe, request, attention, on_step=on_step)
                progress.end_video()
                frames, cost = torch.from_numpy(video.frames).permute(0, 3, 1, 2), video.cost
                if attention is DENSE:
                    dense = frames
                closeness = "" if attention is DENSE else f"{psnr(dense, frames).mean:.1f}"
                density = f"{cost.run_density_with_estimation:.3f}"
                rows.append((attention.name, f"{cost.attention_seconds:.2f}", density, closeness))
        columns = ("", "self-attention, s", "density", "PSNR to dense, dB")
        print_table(self.console, make_table(columns, rows, title=f"{request.prompt}, made with it"))


def _place(path: Path, file: QKVFile) -> tuple[int, int]:
    """Layer and denoising step of a file's tensors."""
    if not file.header.get("layer", "").isdecimal():
        raise ValueError(f"qkv: expected the layer in the header of {path}, as psa inspect --save-qkv writes it")
    if "v" not in file.tensors:
        raise ValueError(f"qkv: expected tensors q, k and v in {path}, found no v")
    return int(file.header["layer"]), file.number("step")
