"""Attention of one denoising step made from that of earlier ones: measured, corrected and bounded.

A layer goes one of three ways in a step, from cheap to exact:

* `broadcast`: its last output once more; nothing is computed.
* `sparse`: the sparse output, plus what it lacked when it was last compared with dense attention.
* `refresh`: dense. Sparse attention runs beside it, and the difference is kept for the steps that follow.

Which of them is a rhythm, or the least that keeps the error within a bound; the error is measured on a few query rows
that are computed exactly. Nothing here knows diffusers: tensors of one call come in, and its output goes out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from psa_triton.config import KeptForm, Reuse, Way

WAYS: tuple[Way, ...] = ("broadcast", "sparse", "refresh")
"""From cheap to exact."""

Sparse = Callable[[Tensor | None], tuple[Tensor, Tensor]]
"""Sparse attention of a call at given levels, or at levels that it chooses: its output, and the levels."""

Dense = Callable[[Tensor], Tensor]
"""Dense attention of some queries `[B, H, n, D]` of a call over all of its keys."""

Like = tuple[torch.Size, torch.dtype, torch.device]
"""Shape, type and place of queries."""

Place = tuple[int, int]
"""A layer, and which of its calls in a forward."""

MIN_PROBED_ROWS = 8
"""Fewer rows say next to nothing of the error."""

MOST_LAYERS = 1 << 16
"""Keeps the seeds of one step's probes from those of the next."""

MOST_ALIKE = 4
"""Forwards of a step that may be conditioned alike, as where guidance leaves out layers. The next step knows nothing of
more: a sampler that calls a step over and over must not keep something for each call."""

FP8_MAX = 448.0
"""Largest number of `torch.float8_e4m3fn`."""


class MeasuredError(NamedTuple):
    """Relative error `|out - dense| / |dense|` of each batch item, from a few rows; float32 `[B]` on their device."""

    error: Tensor
    standard_error: Tensor

    def mean(self) -> tuple[Tensor, Tensor]:
        """Mean over the batch, and the standard error of that; scalars."""
        return self.error.mean(), self.standard_error.norm() / len(self.error)


class Attended(NamedTuple):
    """What came of one attention call."""

    out: Tensor
    """`[B, H, N, D]`."""
    way: Way
    levels: Tensor | None
    """What sparse attention read; None if it did not run."""
    chosen: bool
    """Whether these levels were chosen in this call, and not kept from an earlier one."""
    probed: int
    """Query rows that were computed exactly for the probe."""
    measured: MeasuredError | None
    """None in a refresh, whose output is exact, and without a probe."""


def probed_rows(tokens: int, share: float, seed: int) -> Tensor:
    """Positions of the query rows to compute exactly: one at random from each of as many equal parts of the sequence.

    Args:
        tokens: rows that there are.
        share: of them that are taken; at least `MIN_PROBED_ROWS` are.
        seed: decides which.

    Returns:
        int64 `[n]`, on the CPU, ascending.
    """
    count = min(tokens, max(MIN_PROBED_ROWS, int(tokens * share)))
    within = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((torch.arange(count) + within) * tokens / count).long()


def relative_error(out: Tensor, exact: Tensor) -> MeasuredError:
    """Relative error of sampled rows, and how far that of all rows may be from it.

    The estimate is the root of a ratio of two means over rows; its standard error is by the delta method.

    Args:
        out: `[B, H, n, D]`.
        exact: what it should be.
    """
    wrong = (out.float() - exact.float()).square().sum((1, 3))
    size = exact.float().square().sum((1, 3))
    count = wrong.shape[1]
    mean_size = size.mean(1).clamp(min=torch.finfo(torch.float32).tiny)
    ratio = wrong.mean(1) / mean_size
    # With one row there is no spread to see.
    variance = (wrong - ratio[:, None] * size).square().sum(1) / max(count - 1, 1) / count
    error = ratio.sqrt()
    standard_error = variance.sqrt() / mean_size / (2 * error).clamp(min=torch.finfo(torch.float32).tiny)
    return MeasuredError(error, torch.where(error > 0, standard_error, 0.0))


def probe_seed(step: int, layer: int) -> int:
    """Of the probe of a layer's call in a step."""
    return step * MOST_LAYERS + layer


class Probe:
    """A few query rows of a call that are computed exactly, once they are asked for.

    Args:
        q: queries of the call, `[B, H, N, D]`.
        dense: its dense attention.
        share: of the rows; 0 for none.
        seed: decides which.
    """

    def __init__(self, q: Tensor, dense: Dense, share: float, seed: int) -> None:
        self._q, self._dense, self._share, self._seed = q, dense, share, seed
        self._exact: Tensor | None = None

    @property
    def computed(self) -> int:
        """Rows that were computed exactly."""
        return 0 if self._exact is None else self._exact.shape[2]

    def error(self, out: Tensor) -> MeasuredError | None:
        """Of an output of the call, `[B, H, N, D]`; None without rows."""
        if self._share == 0:
            return None
        if self._exact is None:
            rows = probed_rows(out.shape[2], self._share, self._seed)
            self._rows = rows.to(out.device, non_blocking=True)
            self._exact = self._dense(self._q[:, :, self._rows])
        return relative_error(out[:, :, self._rows], self._exact)


def attend_once(q: Tensor, *, sparse: Sparse, dense: Dense, probe: float, seed: int) -> Attended:
    """Sparse attention of a call that reuses nothing, and its error.

    Args:
        q: queries, `[B, H, N, D]`.
        sparse: its sparse attention.
        dense: its dense attention.
        probe: share of the rows that are computed exactly.
        seed: decides which.
    """
    out, levels = sparse(None)
    with torch.no_grad():
        exact = Probe(q, dense, probe, seed)
        measured = exact.error(out)
    return Attended(out, "sparse", levels, True, exact.computed, measured)


class KeptTensor:
    """A tensor `[B, H, N, D]` kept for later steps, in the form and the place that the settings say."""

    def __init__(self, x: Tensor, form: KeptForm, *, on_host: bool) -> None:
        self._shape, self._dtype, self._device, self._form = x.shape, x.dtype, x.device, form
        self._parts = [_to_host(part) if on_host else part for part in _compress(x, form)]

    def get(self) -> Tensor:
        """The tensor again, or what its form has left of it."""
        parts = [part.to(self._device, non_blocking=True) for part in self._parts]
        return _restore(parts, self._form, self._shape, self._dtype)


def _compress(x: Tensor, form: KeptForm) -> list[Tensor]:
    if form == "full":
        return [x]
    if form == "fp8":
        scale = x.abs().amax(-1, keepdim=True).float().clamp(min=torch.finfo(torch.float32).tiny) / FP8_MAX
        return [(x.float() / scale).to(torch.float8_e4m3fn), scale]
    # Channels first, as averaging over neighbours wants it.
    return [F.avg_pool1d(x.flatten(0, 1).mT, _neighbours(form), ceil_mode=True, count_include_pad=False)]


def _restore(parts: list[Tensor], form: KeptForm, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if form == "full":
        return parts[0]
    if form == "fp8":
        values, scale = parts
        return (values.float() * scale).to(dtype)
    means = parts[0].repeat_interleave(_neighbours(form), dim=-1)
    return means[..., : shape[2]].mT.reshape(shape)


def _neighbours(form: KeptForm) -> int:
    return int(form.removeprefix("mean"))


def _to_host(x: Tensor) -> Tensor:
    if x.device.type != "cuda":
        return x.cpu()
    # In the order of the device's own work, which nothing waits for: from pinned memory the way back is so, too.
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


def kept_bytes(
    reuse: Reuse, *, layers: int, passes: int, tokens: int, heads: int, head_size: int, itemsize: int
) -> int:
    """Memory that is taken by what layers keep from step to step, `itemsize` bytes a number of attention's output.

    `passes` are the forwards of a step, two with guidance, times the batch.
    """
    forms = [reuse.keep] * reuse.runs_sparse + [reuse.keep_output] * reuse.broadcasts
    full = head_size * itemsize
    row = sum({"full": full, "fp8": head_size + 4}.get(form) or full / _neighbours(form) for form in forms)
    return math.ceil(layers * passes * heads * tokens * row)


def check_room(reuse: Reuse, q: Tensor, layers: int) -> None:
    """Check that what is kept of all layers with such queries `[B, H, N, D]` fits where it is to lie.

    Raises:
        MemoryError: it does not.
    """
    batch, heads, tokens, head_size = q.shape
    size = {"tokens": tokens, "heads": heads, "head_size": head_size, "itemsize": q.itemsize}
    needed = kept_bytes(reuse, layers=layers, passes=batch, **size)
    on_device = reuse.keep_on == "device" and q.device.type == "cuda"
    room = _free_on_device(q.device) if on_device else host_memory()
    if needed > room:
        place = "the device" if on_device else "this machine"
        raise MemoryError(
            f"reuse: expected room for the {needed / 2**30:.1f} GiB that are kept from step to step for each guidance "
            f"pass, got {room / 2**30:.1f} GiB on {place}; use keep: fp8 or mean8, keep_on: host, a rhythm without "
            "broadcast, fewer layers, or no reuse"
        )


def host_memory() -> float:
    """Bytes of memory of this machine; inf where the system does not tell, as on Windows."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_on_device(device: torch.device) -> int:
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


@dataclass(frozen=True)
class _Kept:
    """What one layer keeps in one pass."""

    step: int
    """Of the call that it is from."""
    like: Like
    output: KeptTensor | None
    """Its last output."""
    residual: KeptTensor | None
    """Dense less sparse output in its last refresh."""


class _Condition(NamedTuple):
    """What a forward is conditioned on, or a part of it."""

    value: object
    version: int | None
    """Of a tensor: what is written to it in place makes another one."""

    @classmethod
    def of(cls, value: object) -> _Condition:
        return cls(value, value._version if isinstance(value, Tensor) and not value.is_inference() else None)

    def equals(self, other: _Condition) -> bool:
        """Whether the other is the same now as this was when it was noted."""
        is_unchanged = _Condition.of(self.value).version == self.version
        return is_unchanged and (self.value is other.value or _equal(self.value, other.value))


@dataclass
class _Pass:
    """One of the forwards that make a step: with guidance there are two, told apart by what they are conditioned on."""

    conditioning: tuple[_Condition, ...]
    step: int
    """Of its last forward."""
    layers: dict[Place, _Kept] = field(default_factory=dict)


@dataclass
class _Choice:
    """What the first pass of a step did in a layer; the others of the step do likewise.

    Guidance subtracts one pass from the other and multiplies what is left: an error that both have alike cancels, and
    one that each has for itself is multiplied. So they go the same way, and read at the same levels.
    """

    step: int
    like: Like
    """What the levels fit."""
    way: Way
    levels: Tensor | None
    exceeded: bool = False
    """Whether another pass of the step found more error than the bound allows."""


class _Call:
    """One attention call: its output by each way; sparse attention runs at most once."""

    def __init__(self, q: Tensor, kept: _Kept | None, levels: Tensor | None, sparse: Sparse, dense: Dense) -> None:
        self.q, self._kept, self._sparse, self._dense = q, kept, sparse, dense
        self.levels = levels
        self.base: Tensor | None = None

    def run_sparse(self) -> Tensor:
        """What sparse attention alone gives."""
        if self.base is None:
            self.base, self.levels = self._sparse(self.levels)
        return self.base

    def output(self, way: Way) -> Tensor:
        if way == "refresh":
            return self._dense(self.q)
        assert self._kept is not None
        if way == "broadcast":
            assert self._kept.output is not None
            return self._kept.output.get()
        assert self._kept.residual is not None
        return self.run_sparse() + self._kept.residual.get()


class StepReuse:
    """Attends in the steps of one run after another, of one transformer at a time, in one thread.

    What a layer keeps is used in the very next step of the same run only, in the same pass and on queries of the same
    shape; in all other cases the layer refreshes.

    With `max_error` a call goes the cheapest way whose error at the probed rows is within the bound, in the same step:
    it waits for the device once or twice, for which nothing that sparse attention is worthwhile for is too short.

    Args:
        settings: which way, and how things are kept.
        probe: share of the query rows that are computed exactly in each call, to measure the error; 0 for none.
        layers: of the transformer that keep something.
    """

    def __init__(self, settings: Reuse, probe: float, layers: int = 1) -> None:
        self._settings = settings
        self._probe = probe
        self._layers = layers
        self.drop()

    def drop(self) -> None:
        """Keep nothing: what follows has nothing to do with what was."""
        self._run: object = None
        self._weights: object = None
        self._step = -1
        self._steps: int | None = None
        self._passes: list[_Pass] = []
        self._pass = _Pass((), -1)
        self._choices: dict[Place, _Choice] = {}

    def begin(
        self,
        run: object,
        step: int,
        conditioning: Sequence[object],
        *,
        weights: object = None,
        steps: int | None = None,
    ) -> None:
        """A forward begins.

        Args:
            run: the same object in all forwards of one run over the schedule, and another one in the next.
            step: of the denoising.
            conditioning: what tells this forward from others of its step: tensors, such as the text's embedding, or
                anything that compares.
            weights: equal in forwards with the same weights, such as the names of transformer and LoRAs that act.
            steps: how many there are, so that nothing need be kept in the last; None if it is not known.
        """
        if run is not self._run or weights != self._weights or step < self._step:
            self.drop()
        self._run, self._weights, self._step, self._steps = run, weights, step, steps
        noted = tuple(_Condition.of(value) for value in conditioning)
        recent = [item for item in self._passes if item.step >= step - 1]
        alike = [item for item in recent if _same(item.conditioning, noted)]
        # Two passes may be conditioned alike: their order tells them apart then.
        found = next((item for item in alike if item.step < step), None)
        self._pass = found or _Pass(noted, step)
        self._pass.step = step
        self._passes = [item for item in recent if item is not self._pass]
        if found or len(alike) < MOST_ALIKE:
            self._passes.append(self._pass)

    def end(self) -> None:
        """A forward is over. What is kept of its pass is of no use after the last step, nor anything after all of them.

        Layers may not have been called to see that themselves, where a cache took their place.
        """
        if self._step + 1 == self._steps:
            self._pass.layers.clear()
            if all(item.step == self._step for item in self._passes):
                self.drop()

    def attend(self, layer: int, q: Tensor, *, sparse: Sparse, dense: Dense, nth: int = 0) -> Attended:
        """Attention of one layer in the forward that began last.

        Args:
            layer: index of the layer.
            q: its queries `[B, H, N, D]`, in an order in which neighbours are alike.
            sparse: its sparse attention.
            dense: its dense attention.
            nth: which of the layer's calls in this forward.

        Raises:
            MemoryError: what is kept would not fit where it is to lie.
        """
        place = layer, nth
        is_last = self._step + 1 == self._steps
        if not self._pass.layers and not is_last:
            check_room(self._settings, q, self._layers)
        kept, choice = self._of_last_step(place, q), self._choices.get(place)
        leads = choice is None or choice.step < self._step
        least = "refresh" if kept is None else self._least_way(layer, choice)
        # The first pass chooses levels. In a rhythm all read at them until the next refresh; an error that is to be
        # bounded is smaller, and refreshes fewer, at levels of each step.
        renews = least == "refresh" or self._settings.max_error is not None
        anew = choice is None or choice.like != _like(q) or (leads and renews)
        levels = None if choice is None or anew else choice.levels
        call = _Call(q, kept, levels, sparse, dense)
        probe = Probe(q, dense, self._probe, probe_seed(self._step, layer))
        for way in WAYS[WAYS.index(least) :]:
            out = call.output(way)
            measured = None if way == "refresh" else probe.error(out)
            exceeds = self._exceeds(measured)
            if way == "refresh" or not leads or not exceeds:
                break
        if not is_last:
            self._pass.layers[place] = self._keep(call, kept, way, out)
        if choice is None or leads:
            self._choices[place] = _Choice(self._step, _like(q), way, call.levels)
        else:
            choice.exceeded |= exceeds
        ran = call.base is not None
        return Attended(
            out, way, call.levels if ran else None, ran and call.levels is not levels, probe.computed, measured
        )

    def _keep(self, call: _Call, kept: _Kept | None, way: Way, out: Tensor) -> _Kept:
        """What the layer keeps for the next step: a new output, and after a refresh the difference."""
        settings, on_host = self._settings, self._settings.keep_on == "host"
        output, residual = (None, None) if kept is None else (kept.output, kept.residual)
        if settings.broadcasts and way != "broadcast":
            output = KeptTensor(out, settings.keep_output, on_host=on_host)
        if settings.runs_sparse and way == "refresh":
            residual = KeptTensor(out - call.run_sparse(), settings.keep, on_host=on_host)
        return _Kept(self._step, _like(call.q), output, residual)

    def _of_last_step(self, place: Place, q: Tensor) -> _Kept | None:
        """What the layer keeps of this pass, if it may be used in this step."""
        kept = self._pass.layers.get(place)
        return kept if kept is not None and kept.step == self._step - 1 and kept.like == _like(q) else None

    def _least_way(self, layer: int, choice: _Choice | None) -> Way:
        """The first way to try."""
        if choice is not None and choice.step == self._step:
            return choice.way
        if self._settings.max_error is None:
            return self._settings.way(self._step, layer, self._steps)
        if choice is None or not choice.exceeded:
            return "broadcast"
        return WAYS[min(WAYS.index(choice.way) + 1, len(WAYS) - 1)]

    def _exceeds(self, measured: MeasuredError | None) -> bool:
        bound = self._settings.bound(self._step, self._steps)
        return bound is not None and measured is not None and float(measured.error.max()) > bound


def _like(q: Tensor) -> Like:
    return q.shape, q.dtype, q.device


def _same(one: Sequence[_Condition], other: Sequence[_Condition]) -> bool:
    return len(one) == len(other) and all(a.equals(b) for a, b in zip(one, other, strict=True))


def _equal(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and a == b
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
