"""Reuse of attention between steps, on tensors alone: q, k, v that walk from step to step."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from psa_triton import PSAConfig, pyramid_attention
from psa_triton.attention import sparse_attention
from psa_triton.config import Reuse
from psa_triton.integrations.reuse import Attended, KeptTensor, StepReuse, kept_bytes, probed_rows, relative_error

TOKENS = 256
CONFIG = PSAConfig(block_m=32, block_n=32, mask_mode="budget", budget=0.2)
PROMPT, OTHER_PROMPT = torch.ones(1, 4, 8), torch.zeros(1, 4, 8)


def walk(steps, *, pace=0.1, seed=0, tokens=TOKENS):
    """q, k, v of a layer in each step."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(3, 1, 2, tokens, 16, generator=generator)
    for _ in range(steps):
        yield tuple(qkv)
        qkv = qkv + pace * torch.randn(qkv.shape, generator=generator)


@dataclass
class Calls:
    """Attends through a `StepReuse`, counting how often levels are chosen."""

    reuse: StepReuse
    chosen: int = 0
    outs: list[Attended] = field(default_factory=list)

    def __call__(self, qkv, layer=0):
        q, k, v = qkv

        def sparse(levels):
            if levels is None:
                self.chosen += 1
                return sparse_attention(q, k, v, CONFIG)
            return pyramid_attention(q, k, v, levels, block_m=32, block_n=32), levels

        self.outs.append(self.reuse.attend(layer, q, sparse=sparse, dense=lambda rows: dense(rows, k, v)))
        return self.outs[-1]


dense = scaled_dot_product_attention


def calls(probe=0.0, **settings):
    return Calls(StepReuse(Reuse(**settings), probe))


def run(attend, steps):
    """One pass over the steps of a new run."""
    this_run = object()
    found = []
    for step, qkv in enumerate(steps):
        attend.reuse.begin(this_run, step, [PROMPT])
        found.append(attend(qkv))
    return found


def ways(found):
    return "".join(attended.way[0] for attended in found)


def true_error(attended, qkv):
    return float(relative_error(attended.out, dense(*qkv)).error)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"refresh_steps": (0,)}, "rsssssssssss"),
        ({"refresh_steps": (0,), "sparse_every": 3}, "rsssbbsbbsss"),
        ({"refresh_steps": (0,), "sparse_every": 4}, "rbsbsbbbsbsb"),
        ({"refresh_steps": (0,), "sparse_every": 0}, "rbbbbbbbbbbb"),
        ({"refresh_steps": (0, 3, 10), "sparse_every": 2}, "rssrbsbsbsrs"),
        ({"refresh_every": 8, "layer_groups": 2, "sparse_every": 4}, "sbsbrbbbsbsb"),
    ],
)
def test_sparse_steps_count_from_the_refresh_and_are_twice_as_many_at_both_ends(how, expected):
    assert "".join(Reuse(**how).way(step, 1, 12)[0] for step in range(12)) == expected


def test_the_bound_is_wider_in_the_middle_of_a_schedule():
    reuse = Reuse(max_error=0.1, middle_tolerance=2.0)
    assert [reuse.bound(step, 12) for step in (0, 3, 4, 9, 10, 11)] == [0.1, 0.1, 0.2, 0.2, 0.1, 0.1]


def test_groups_of_layers_refresh_in_turn_and_all_at_first():
    attend = calls(refresh_every=4, layer_groups=2)
    this_run = object()
    found = {0: [], 1: [], 2: []}
    for step, qkv in enumerate(walk(8)):
        attend.reuse.begin(this_run, step, [PROMPT])
        for layer, of_layer in found.items():
            of_layer.append(attend(qkv, layer))
    assert [ways(of_layer) for of_layer in found.values()] == ["rsssrsss", "rsrsssrs", "rsssrsss"]


def test_each_way_gives_what_it_says():
    steps = list(walk(3))
    attend = calls(refresh_every=3, sparse_every=2)
    refresh, broadcast, sparse = run(attend, steps)
    levels = refresh.levels
    assert levels is not None and refresh.chosen and not sparse.chosen and broadcast.levels is None
    bases = [pyramid_attention(*steps[step], levels, block_m=32, block_n=32) for step in (0, 2)]
    torch.testing.assert_close(refresh.out, dense(*steps[0]))
    torch.testing.assert_close(broadcast.out, dense(*steps[0]))
    torch.testing.assert_close(sparse.out, bases[1] + dense(*steps[0]) - bases[0])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda reuse, run: (run, 0, [PROMPT]), id="schedule restarts"),
        pytest.param(lambda reuse, run: (run, 1, [PROMPT]), id="step repeated"),
        pytest.param(lambda reuse, run: (run, 3, [PROMPT]), id="step skipped"),
        pytest.param(lambda reuse, run: (object(), 2, [PROMPT]), id="another run"),
        pytest.param(lambda reuse, run: (run, 2, [OTHER_PROMPT]), id="another prompt"),
        pytest.param(lambda reuse, run: (run, 2, [PROMPT, PROMPT]), id="conditioned on more"),
        pytest.param(lambda reuse, run: (run, 2, [PROMPT.half()]), id="another type"),
        pytest.param(lambda reuse, run: (reuse.drop(), (run, 2, [PROMPT]))[1], id="dropped"),
    ],
)
def test_what_is_kept_is_for_the_next_step_of_its_run_and_pass_alone(change):
    attend, this_run = calls(refresh_every=100), object()
    first, second, qkv = walk(3)
    for step, earlier in enumerate((first, second)):
        attend.reuse.begin(this_run, step, [PROMPT.clone()])  # the same prompt anew is the same pass
        attend(earlier)
    attend.reuse.begin(*change(attend.reuse, this_run))
    attended = attend(qkv)
    assert ways(attend.outs) == "rsr"
    torch.testing.assert_close(attended.out, dense(*qkv))


@pytest.mark.parametrize("other", [dict(tokens=128), dict(dtype=torch.float64)], ids=["shape", "type"])
def test_a_call_of_another_shape_or_type_refreshes(other):
    attend, this_run = calls(refresh_every=100), object()
    (qkv,) = walk(1)
    for step in range(2):
        attend.reuse.begin(this_run, step, [PROMPT])
        attend(qkv)
        qkv = tuple(x[:, :, : other.get("tokens")].to(other.get("dtype", x.dtype)) for x in qkv)
    assert ways(attend.outs) == "rr"


@pytest.mark.parametrize(("second_prompt", "order"), [(OTHER_PROMPT, (0, 1)), (OTHER_PROMPT, (1, 0)), (PROMPT, (0, 1))])
def test_passes_keep_their_own(second_prompt, order):
    """Two forwards a step, told apart by their prompts whatever their order, and equal ones by their order."""
    prompts = [PROMPT, second_prompt]
    walks = [list(walk(2, seed=seed)) for seed in (1, 2)]
    alone = [run(calls(refresh_every=2), steps)[0] for steps in walks]
    attend, this_run = calls(refresh_every=100), object()
    for index in (0, 1):
        attend.reuse.begin(this_run, 0, [prompts[index]])
        attend(walks[index][0])
    levels = attend.outs[0].levels
    for index in order:
        attend.reuse.begin(this_run, 1, [prompts[index]])
        attended = attend(walks[index][1])
        bases = [pyramid_attention(*qkv, levels, block_m=32, block_n=32) for qkv in walks[index]]
        torch.testing.assert_close(attended.out, bases[1] + alone[index].out - bases[0])


def test_passes_of_a_step_read_at_the_levels_of_the_first():
    attend, this_run = calls(refresh_every=2), object()
    for step, qkv in enumerate(walk(4)):
        for prompt in (PROMPT, OTHER_PROMPT):
            attend.reuse.begin(this_run, step, [prompt])
            attend(qkv)
    assert attend.chosen == 2  # once a refresh
    assert [attended.chosen for attended in attend.outs] == [True, False, False, False] * 2


@pytest.mark.parametrize("bound", [0.05, 0.2, 0.4])
def test_the_probed_error_stays_within_the_bound(bound):
    steps = list(walk(12, pace=0.15))
    found = run(calls(probe=0.05, max_error=bound), steps)
    for attended, qkv in zip(found, steps, strict=True):
        if attended.measured is None:
            assert attended.way == "refresh" and true_error(attended, qkv) < 1e-6
        else:
            assert float(attended.measured.error) <= bound
            assert true_error(attended, qkv) <= bound + 4 * float(attended.measured.standard_error)


def test_a_looser_bound_climbs_less_and_the_same_run_climbs_the_same():
    steps = list(walk(12, pace=0.1))
    found = {bound: ways(run(calls(probe=0.05, max_error=bound), steps)) for bound in (0.01, 0.15, 0.3, 2.0)}
    refreshes = [way.count("r") for way in found.values()]
    assert refreshes[0] == 12 and sorted(refreshes, reverse=True) == refreshes and found[2.0] == "r" + 11 * "b"
    assert ways(run(calls(probe=0.05, max_error=0.15), steps)) == found[0.15]
    assert set(found[0.15]) | set(found[0.3]) == set("rsb")


def test_a_later_pass_beyond_the_bound_lifts_both_in_the_next_step():
    attend, this_run = calls(probe=0.1, max_error=0.2), object()
    still, moving = list(walk(3, pace=0.0)), list(walk(3, pace=1.0, seed=1))
    for step in range(3):
        for prompt, steps in ((PROMPT, still), (OTHER_PROMPT, moving)):
            attend.reuse.begin(this_run, step, [prompt])
            attend(steps[step])
    assert ways(attend.outs) == "rr" + "bb" + "ss"


def test_the_probe_is_within_its_standard_error_of_the_true_error():
    """Over many seeds: the mean error is right, and its spread is the one that is stated."""
    q, k, v = next(iter(walk(1, tokens=1024)))
    exact = dense(q, k, v)
    out = sparse_attention(q, k, v, CONFIG)[0]
    true = float(relative_error(out, exact).error)
    found = []
    for seed in range(400):
        rows = probed_rows(1024, 0.03, seed)
        found.append(relative_error(out[:, :, rows], exact[:, :, rows]))
    errors = torch.cat([measured.error for measured in found]).double()
    stated = torch.cat([measured.standard_error for measured in found]).double()
    assert true > 0.1
    assert abs(float(errors.mean()) - true) < 4 * float(errors.std()) / 400**0.5 + 0.01 * true
    assert 0.8 < float(errors.std() / stated.square().mean().sqrt()) < 1.2


def test_the_standard_error_by_hand():
    """Two rows: squares of error 1 and 3, of size 4 and 4. Ratio 1/2, deviations from it -1 and 1."""
    exact = torch.tensor([2.0, 2.0]).reshape(1, 1, 2, 1)
    out = exact + torch.tensor([1.0, 3**0.5]).reshape(1, 1, 2, 1)
    error, standard_error = relative_error(out, exact)
    torch.testing.assert_close(error, torch.tensor([0.5**0.5]))
    torch.testing.assert_close(standard_error, torch.tensor([1 / 4 / (2 * 0.5**0.5)]))


@pytest.mark.parametrize("tokens", [1, 7, 100, 1000])
def test_probed_rows_are_one_of_each_part(tokens):
    rows = probed_rows(tokens, 0.02, seed=3)
    assert len(rows) == min(tokens, max(8, tokens // 50))
    assert rows.tolist() == sorted(set(rows.tolist())) and rows[0] >= 0 and rows[-1] < tokens
    parts = (rows * len(rows) // tokens).tolist()
    assert max(abs(part - index) for index, part in enumerate(parts)) <= 1
    assert tokens < 100 or rows.tolist() != probed_rows(tokens, 0.02, seed=4).tolist()


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize(
    ("form", "error"), [("full", 0.0), ("fp8", 0.04), ("mean2", 1.0), ("mean4", 1.0), ("mean8", 1.0)]
)
def test_kept_forms(form, error, on_host):
    x = torch.randn(1, 2, 101, 16, generator=torch.Generator().manual_seed(0))
    x[0, 0, 3] = 0  # a row without a largest number
    kept = KeptTensor(x, form, on_host=on_host).get()
    assert kept.shape == x.shape and kept.dtype == x.dtype
    assert float((kept - x).norm() / x.norm()) <= error
    if form.startswith("mean"):
        n = int(form[4:])
        for start in range(0, 101, n):
            group = slice(start, start + n)
            expected = x[:, :, group].mean(2, keepdim=True).expand_as(x[:, :, group])
            torch.testing.assert_close(kept[:, :, group], expected)


@pytest.mark.parametrize(
    ("settings", "gib"),
    [
        ({"refresh_every": 4}, 12.98),
        ({"refresh_every": 4, "keep": "fp8"}, 6.69),
        ({"refresh_every": 4, "keep": "mean4"}, 3.24),
        ({"refresh_every": 4, "sparse_every": 2}, 25.96),
        ({"max_error": 0.1, "keep": "fp8"}, 13.38),
        ({"refresh_every": 4, "sparse_every": 0}, 12.98),
    ],
)
def test_memory_of_wan_at_720p(settings, gib):
    """75,600 tokens, 12 heads of 128 channels, 30 layers, two passes, bfloat16."""
    needed = kept_bytes(Reuse(**settings), layers=30, passes=2, tokens=75_600, heads=12, head_size=128, itemsize=2)
    assert needed / 2**30 == pytest.approx(gib, abs=0.01)


def test_no_room(monkeypatch):
    """A machine of one page of memory."""
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else 4096)
    (qkv,) = walk(1)
    with pytest.raises(MemoryError, match=r"reuse: expected room for the 0\.0 GiB .* use keep: fp8"):
        run(calls(refresh_every=2), [qkv])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "expected one of refresh_every, refresh_steps and max_error, got none"),
        ({"refresh_every": 2, "max_error": 0.1}, "got refresh_every and max_error"),
        ({"refresh_every": 2, "layer_groups": 3}, "layer_groups: expected at most refresh_every"),
        ({"max_error": 0.1, "sparse_every": 2}, "sparse_every: expected it without max_error"),
        ({"refresh_every": 2, "middle_tolerance": 2.0}, "middle_tolerance: expected it with max_error alone"),
    ],
)
def test_settings_that_contradict_each_other(settings, words):
    with pytest.raises(ValueError, match=words):
        Reuse(**settings)


def test_a_bound_wants_a_probe():
    with pytest.raises(ValueError, match="probe: expected more than 0"):
        PSAConfig(reuse=Reuse(max_error=0.1))
