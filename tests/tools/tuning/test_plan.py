"""Parts of a run, goals, and the preset that a choice becomes."""

import pytest

from psa_triton.config import PSAConfig
from psa_triton.presets import PresetError, load_preset, load_presets_file, shipped_presets
from psa_triton.tools.tuning.allocation import Allocation, Cell, Goal
from psa_triton.tools.tuning.curve import DENSE, Point
from psa_triton.tools.tuning.plan import RunPart, parts_around, parts_of_run
from psa_triton.tools.tuning.preset import presets_with, tuned_config

BASE = PSAConfig(mask_mode="budget", warmup_steps=3)


def test_parts_hold_every_step_after_the_warm_up_once():
    parts = parts_of_run(12, warmup=5, count=3)
    assert [(part.first, part.stop, part.measured) for part in parts] == [(5, 7, 6), (7, 9, 8), (9, 12, 10)]
    assert [str(part) for part in parts_of_run(3, warmup=1, count=4)] == ["1", "2"]


def test_parts_around_measured_steps_end_halfway():
    parts = parts_around([4, 6, 11], 12, warmup=3)
    assert [(part.first, part.stop) for part in parts] == [(3, 5), (5, 9), (9, 12)]


@pytest.mark.parametrize("step", [2, 12], ids=["warm-up", "beyond"])
def test_a_saved_step_that_does_not_run_sparse_is_refused(step):
    with pytest.raises(ValueError, match=f"expected denoising steps from 3.* to 11, got {step}"):
        parts_around([step], 12, warmup=3)


def test_a_run_of_nothing_but_warm_up_is_refused():
    with pytest.raises(ValueError, match="num_inference_steps: expected more than the 5 warm-up steps"):
        parts_of_run(5, warmup=5, count=2)


def test_each_step_finds_its_own_row():
    parts = parts_of_run(7, warmup=3, count=4)
    points = tuple(Point(budget, budget, 0.1) for budget in (0.1, 0.2, 0.3, 0.4))
    cells = [Cell(0, part, 1, (point, DENSE)) for part, point in enumerate(points)]
    config = tuned_config(BASE, cells, parts, Allocation(points, 0.25, 0.1), steps=7, words="Mine.")
    assert [config.at(0, step / 7).budget for step in range(7)] == [0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4]
    assert (config.description, config.budget, config.warmup_steps) == ("Mine.", 0.25, 3)


def test_budgets_are_rounded_down():
    points = (Point(0.12349, 0.1, 0.1), Point(0.3, 0.3, 0.1))
    cells = [Cell(layer, 0, 1, (point, DENSE)) for layer, point in enumerate(points)]
    config = tuned_config(BASE, cells, [RunPart(3, 7, 5)], Allocation(points, 0.1 + 0.2, 0.1), steps=7, words="")
    assert config.budget_table[0].budgets == (0.1234, 0.3)
    assert config.budget == 0.3


def cells():
    return [Cell(0, 0, 1, (Point(0.1, 0.1, 0.4), Point(0.5, 0.5, 0.1), DENSE))]


def test_a_speed_up_counts_the_warm_up():
    found = Goal(speedup=2).reach(cells(), steps=10, warmup=4)
    assert (4 + 6 * found.cost) / 10 == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        pytest.param({}, "got none", id="none"),
        pytest.param({"budget": 0.2, "error": 0.1}, "got budget and target_error", id="two"),
        pytest.param({"budget": 1.5}, "budget: expected more than 0 and at most 1, got 1.5", id="budget"),
        pytest.param({"speedup": 0.5}, "target_speedup: expected 1 or more", id="speedup"),
        pytest.param({"error": -1}, "target_error: expected a finite number >= 0", id="error"),
        pytest.param({"error": float("inf")}, "target_error: expected a finite number >= 0, got inf", id="infinite"),
    ],
)
def test_wishes_that_make_no_sense(wishes, message):
    with pytest.raises(ValueError, match=message):
        Goal(**wishes)


def test_wishes_beyond_the_least_budget():
    with pytest.raises(
        ValueError, match=r"target_speedup: expected 2\.36 or less.* with 4 of 10 steps dense, got 2\.4;"
    ):
        Goal(speedup=2.4).check(steps=10, warmup=4)
    Goal(speedup=2.3).check(steps=10, warmup=4)
    with pytest.raises(ValueError, match=r"budget: expected 0\.04 or more, got 0\.03"):
        Goal(budget=0.03).check(steps=10, warmup=4)


TUNED = PSAConfig(
    description="Ein Test: ça va?",
    block_m=64,
    block_n=32,
    mask_mode="budget",
    budget=0.2,
    budget_table=[{"start": 0, "budgets": [0.1, 0.2]}, {"start": 0.5, "budgets": [0.3, 1.0]}],
    importance="representative",
    warmup_steps=2,
)
SECTION = "Wan2.1_1.3b"


def put(file, config=TUNED, section=SECTION, name="tuned"):
    file.write_bytes(presets_with(file, section, name, config, base=None))
    return file.read_bytes()


def test_a_file_adds_the_preset_to_the_library_s(tmp_path):
    path = tmp_path / "new.yaml"
    first = put(path)
    assert b"budgets: [0.3, 1.0]" in first
    assert load_preset(SECTION, "tuned", path) == TUNED
    assert load_preset(SECTION, "psa_topk", path) == load_preset(SECTION, "psa_topk")
    assert put(path) == first


def test_other_presets_of_earlier_runs_are_kept(tmp_path):
    path, other = tmp_path / "new.yaml", TUNED.replace(budget=0.3)
    put(path)
    put(path, other, name="other")
    put(path, other, section="tiny-wan")
    put(path, other)
    assert list(load_presets_file(path).sections) == [SECTION, "tiny-wan"]
    assert [load_preset(*place, path) for place in ((SECTION, "tuned"), (SECTION, "other"), ("tiny-wan", "tuned"))] == [
        other
    ] * 3


def test_the_rest_of_a_section_is_that_of_one_s_own_base(tmp_path):
    base, path = tmp_path / "base.yaml", tmp_path / "new.yaml"
    base.write_text(f"{SECTION}:\n  text_length: 7\n  attention_configs:\n    mine: {{type: dense}}\n")
    path.write_bytes(presets_with(path, SECTION, "tuned", TUNED, base=base))
    assert load_presets_file(path).section(SECTION).text_length == 7
    assert load_preset(SECTION, "mine", path) is None
    assert load_preset(SECTION, "tuned", path) == TUNED


def test_files_that_others_wrote_stay_as_they_are(tmp_path):
    path, link = tmp_path / "mine.yaml", tmp_path / "link.yaml"
    path.write_text(f"# Mine.\n{SECTION}:\n  attention_configs:\n    mine: {{type: dense}}\n")
    link.symlink_to(shipped_presets())
    for file, error, message in (
        (path, ValueError, "was not written by psa tune"),
        (shipped_presets(), ValueError, "comes with the library and is never written"),
        (link, ValueError, "never written"),
        (tmp_path / "missing" / "mine.yaml", FileNotFoundError, "there is no folder"),
    ):
        with pytest.raises(error, match=message):
            put(file)
    path.write_text("a: [")
    with pytest.raises(PresetError, match="expected YAML"):
        put(path)
