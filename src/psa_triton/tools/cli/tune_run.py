"""A run of `psa tune`: curves of a generation's or of saved attention calls, what follows from them, the preset."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
from diffusers import DiffusionPipeline
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import layer_count
from psa_triton.integrations.diffusers.tap import QKVTap
from psa_triton.presets import shipped_presets
from psa_triton.tools.cli.errors import told_if_interrupted
from psa_triton.tools.cli.progress import VideoProgress, logging_to
from psa_triton.tools.cli.target import Target
from psa_triton.tools.evaluation import CallSite
from psa_triton.tools.evaluation.measures.pixels import psnr
from psa_triton.tools.files import Hold, output_folder, staged
from psa_triton.tools.generation import DENSE, Attention, VideoRequest, generate_video
from psa_triton.tools.inspection import AttentionInputs, Probe, QKVFile
from psa_triton.tools.inspection.probe import READ_ALL
from psa_triton.tools.tuning import (
    Allocation,
    Cell,
    Curve,
    Goal,
    RunPart,
    check_output,
    draw,
    file_with_preset,
    make_cells,
    measure_curve,
    one_budget,
    parts_around,
    parts_of_run,
    root_mean_square,
    tuned_config,
    write_presets,
)

_FEW_LAYERS = 12
_ROOM = 1 << 18
"""Bytes of the presets file and the picture, roughly."""

Measured = defaultdict[tuple[int, int], list[Curve]]
"""Curves by part and layer."""


@dataclass(frozen=True)
class Destination:
    """Where the preset goes, and the presets file that its base is from; None for the one of the library."""

    output: Path
    preset_name: str
    base_file: Path | None


@dataclass(frozen=True)
class TuneRun:
    """What is tuned, towards what, and where it goes; `warmup_steps` None for the preset's, `goal` for its budget."""

    base: Attention
    warmup_steps: int | None
    goal: Goal | None
    to: Destination
    query_blocks: int
    console: Console = field(default_factory=lambda: Console(highlight=False, markup=False, soft_wrap=True))

    def tune_model(self, target: Target, requests: Sequence[VideoRequest], *, parts: int, check: bool) -> None:
        """Tune on what the model attends with while it makes videos, densely.

        Raises:
            ValueError: the preset is in no budget mode, the goal is out of reach, or the file cannot be added to.
        """
        began = time.perf_counter()
        config, steps = self._config(), requests[0].num_inference_steps
        chosen = parts_of_run(steps, warmup=config.warmup_steps, count=parts)
        part_of = {part.measured: index for index, part in enumerate(chosen)}
        measured: Measured = defaultdict(list)

        def on_call(site: CallSite, inputs: AttentionInputs, _: Tensor) -> None:
            measured[part_of[site.step], site.layer].append(self._curve(inputs, config))

        with self._begun(config, steps) as goal, logging_to(self.console, verbose=False):
            pipe = target.load(requests[0], self.console)
            dense = Attention(name="dense, tapped", config=READ_ALL, impl=self.base.impl)
            with QKVTap(pipe) as tap, VideoProgress(self.console, len(requests)) as progress:
                for request in requests:
                    on_step = progress.start_video(request.prompt, steps)
                    probe = Probe(tap, range(layer_count(pipe.transformer)), part_of, on_call)
                    generate_video(pipe, request, dense, on_step=on_step, on_levels=probe)
                    progress.end_video()
            tuned, uniform = self._finish(make_cells(measured, chosen), chosen, goal, config, steps)
            if check:
                with told_if_interrupted(lambda: f"the preset is in {self.to.output}; its check was not finished"):
                    self._check(pipe, requests[0], {"one budget": uniform, self.to.preset_name: tuned})
        self.console.print(f"{time.perf_counter() - began:.0f} s in all")

    def tune_files(self, files: Mapping[Path, QKVFile], *, steps: int | None) -> None:
        """Tune on saved tensors, of a run of that many `steps`; None where they are all of one step.

        Raises:
            ValueError: likewise; or a file does not tell its layer, or holds no values.
        """
        config = self._config()
        places = {path: _place(path, file) for path, file in files.items()}
        found = sorted({step for _, step in places.values()})
        if steps is None:
            if found != [0]:
                raise ValueError("num_inference_steps: expected it, as the files are of denoising steps")
            steps = 1 + config.warmup_steps
            places, found = {path: (layer, steps - 1) for path, (layer, _) in places.items()}, [steps - 1]
        parts = parts_around(found, steps, warmup=config.warmup_steps)
        measured: Measured = defaultdict(list)
        with self._begun(config, steps) as goal:
            for path, file in files.items():
                layer, step = places[path]
                inputs = file.inputs()
                with self.console.status(f"measuring {path.name}"):
                    for entry in range(inputs.q.shape[0]):
                        measured[found.index(step), layer].append(self._curve(inputs.batch_entry(entry), config))
            self._finish(make_cells(measured, parts), parts, goal, config, steps)

    def _config(self) -> PSAConfig:
        config = self.base.config
        if config is None or config.mask_mode != "budget":
            raise ValueError(f"attention_preset: expected one with mask_mode: budget, got {self.base.name}")
        return config if self.warmup_steps is None else config.replace(warmup_steps=self.warmup_steps)

    @contextmanager
    def _begun(self, config: PSAConfig, steps: int) -> Iterator[Goal]:
        """Everything that may go wrong is to do so before the work starts; nobody else edits the file meanwhile."""
        goal = Goal(budget=config.budget) if self.goal is None else self.goal
        goal.check(steps=steps, warmup=config.warmup_steps)
        check_output(self.to.output)
        self._text(config)
        with output_folder(self.to.output.absolute().parent, room=_ROOM, option="output"), Hold(self.to.output):
            yield goal

    def _text(self, config: PSAConfig) -> str:
        to, section = self.to, self.base.name.partition("/")[0]
        return file_with_preset(to.output, section, to.preset_name, config, base=to.base_file or shipped_presets())

    def _curve(self, inputs: AttentionInputs, config: PSAConfig) -> Curve:
        return measure_curve(inputs, config, query_blocks=self.query_blocks, impl=self.base.impl)

    def _finish(
        self, cells: Sequence[Cell], parts: Sequence[RunPart], goal: Goal, config: PSAConfig, steps: int
    ) -> tuple[PSAConfig, PSAConfig]:
        """Choose, show and write; returns the tuned configuration, and the one with one budget at the same cost."""
        chosen = goal.reach(cells, steps=steps, warmup=config.warmup_steps)
        budget, uniform = one_budget(cells, chosen.cost)
        words = (
            f"Tuned by psa tune: error {chosen.error:.4f} expected at a mean density of {chosen.cost:.3f}; "
            f"one budget for all {uniform.error:.4f}."
        )
        tuned = tuned_config(config, cells, parts, chosen, steps=steps, words=words)
        self._show(cells, parts, chosen, tuned)
        self._say(chosen, budget, uniform, config.warmup_steps, steps)
        section, to = self.base.name.partition("/")[0], self.to
        picture = to.output.with_name(f"{to.output.stem}_{to.preset_name}.png")
        with staged() as files:
            write_presets(to.output, self._text(tuned), section, to.preset_name, tuned, files.write)
            title = f"{section}/{to.preset_name}, from {self.base.name}"
            draw(cells, parts, chosen, uniform, title, picture, files.write)
        self.console.print(f"Preset {section}/{to.preset_name} is in {to.output}, the curves in {picture}")
        return tuned, config.replace(budget=budget, budget_table=())

    def _show(self, cells: Sequence[Cell], parts: Sequence[RunPart], chosen: Allocation, tuned: PSAConfig) -> None:
        curves = Table(title="Error by budget, over layers and parts", box=SIMPLE_HEAD)
        for column in ("budget", "density", "root mean square", "least", "greatest"):
            curves.add_column(column, justify="right")
        for points in zip(*(cell.measured for cell in cells), strict=True):
            errors = [point.error for point in points]
            numbers = root_mean_square(errors), min(errors), max(errors)
            density = fmean(point.cost for point in points)
            curves.add_row(f"{points[0].budget:g}", f"{density:.3f}", *(f"{x:.4f}" for x in numbers))
        self.console.print(curves)
        budgets = Table(title="Budgets chosen", box=SIMPLE_HEAD)
        budgets.add_column("steps", justify="right")
        few = len(tuned.budget_table[0].budgets) <= _FEW_LAYERS
        layers = range(len(tuned.budget_table[0].budgets))
        for name in [f"layer {layer}" for layer in layers] if few else ["mean", "least", "greatest"]:
            budgets.add_column(name, justify="right")
        for part, line in zip(parts, tuned.budget_table, strict=True):
            x = line.budgets
            shown = x if few else (fmean(x), min(x), max(x))
            budgets.add_row(str(part), *(f"{budget:.3f}" for budget in shown))
        self.console.print(budgets)

    def _say(self, chosen: Allocation, budget: float, uniform: Allocation, warmup: int, steps: int) -> None:
        self.console.print(
            f"Expected error {chosen.error:.4f} at a mean density of {chosen.cost:.3f}, the estimate of importance "
            f"included; one budget of {budget:.3f} for all: {uniform.error:.4f}."
        )
        run = (warmup + chosen.cost * (steps - warmup)) / steps
        dense = f", {warmup} of {steps} steps dense" if warmup else ""
        self.console.print(
            f"Whole run{dense}: density {run:.3f}, {1 / run:.2f} times less work in attention than dense by this "
            "count; times depend on the machine."
        )

    def _check(self, pipe: DiffusionPipeline, request: VideoRequest, configs: Mapping[str, PSAConfig]) -> None:
        """Make one video densely and with each configuration, and show how close and how fast it is."""
        table = Table(title=f"{request.prompt}, made with it", box=SIMPLE_HEAD)
        for column in ("", "self-attention, s", "density", "PSNR to dense, dB"):
            table.add_column(column, justify="right")
        ways = {DENSE.name: DENSE}
        ways |= {name: replace(self.base, name=name, config=config) for name, config in configs.items()}
        frames: torch.Tensor | None = None
        with VideoProgress(self.console, len(ways)) as progress:
            for name, attention in ways.items():
                on_step = progress.start_video(name, request.num_inference_steps)
                video = generate_video(pipe, request, attention, on_step=on_step)
                progress.end_video()
                made = torch.from_numpy(video.frames).permute(0, 3, 1, 2)
                frames = made if frames is None else frames
                closeness = "" if attention is DENSE else f"{psnr(frames, made).mean:.1f}"
                cost = video.cost
                table.add_row(
                    name, f"{cost.attention_seconds:.2f}", f"{cost.run_density_with_estimation:.3f}", closeness
                )
        self.console.print(table)


def _place(path: Path, file: QKVFile) -> tuple[int, int]:
    """Layer and denoising step of a file's tensors."""
    if not file.header.get("layer", "").isdecimal():
        raise ValueError(f"qkv: expected the layer in the header of {path}, as psa inspect --save-qkv writes it")
    if "v" not in file.tensors:
        raise ValueError(f"qkv: expected tensors q, k and v in {path}, found no v")
    return int(file.header["layer"]), file.number("step")
