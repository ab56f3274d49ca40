from types import SimpleNamespace

import pytest

from psa_triton.tools.evaluation.summary import QUANTITIES, Average, Column
from psa_triton.tools.evaluation.verdict import judge, judge_alone


def column(role, label="it", **means):
    averages = dict.fromkeys(QUANTITIES)
    return Column(label, role, averages | {name: Average(value, None, 1) for name, value in means.items()}, {})


DENSE = column("dense", attention_seconds=6.0, total_seconds=10.0)


def candidate(label="it", **means):
    usual = {"total_speedup": 1.5, "attention_speedup": 2.0, "psnr": 35.0, "tokens": 30_000.0}
    densities = {"run_density_with_estimation": 0.36, "attention_density_with_estimation": 0.2}
    return column("psa", label, **{**usual, **densities, **means})


VERDICTS = {
    "faster and close": ({}, "Worth it: it was 1.50 times as fast", "36% of the dense work, 20% of it in dense", "0.2"),
    "strayed": ({"psnr": 28.0}, "Worth it if details may change", "60% of a dense run's time", "--max-error 0.1"),
    "another video": (
        {"psnr": 15.0, "run_density_with_estimation": 0.2},
        *("Not worth it: ", "the first ones decide", "--max-error"),
    ),
    "attention is not all": (
        {"total_speedup": 1.01, "attention_speedup": 1.2},
        *("No gain here", "1.2 times as fast, but is 60%", "more than 2.5 times as fast"),
    ),
    "few tokens": (
        {"total_speedup": 0.5, "attention_speedup": 0.4, "tokens": 1152.0},
        *("Not worth it here: it was 2.00 times as slow", "1,152 tokens are few", "a larger video"),
    ),
    "dense steps": (
        {"total_speedup": 0.9, "attention_speedup": 0.9, "run_density_with_estimation": 0.8},
        *("Not worth it here", "80% of the dense work, 75% of it", "psa_budget"),
    ),
    "the same frames": ({"psnr": 100.0}, "made the same frames", "", ""),
}


@pytest.mark.parametrize(("means", "answer", "cause", "advice"), list(VERDICTS.values()), ids=list(VERDICTS))
def test_an_answer_its_cause_and_what_to_try(means, answer, cause, advice):
    ((_, verdict),) = judge([DENSE, candidate(**means)])
    assert answer in verdict.answer and cause in verdict.cause and advice in verdict.advice
    assert str(verdict) == f"{verdict.answer} Why: {verdict.cause}. Try: {verdict.advice}."


def test_the_best_is_first_and_another_video_is_never_best():
    columns = [
        DENSE,
        candidate("fast", psnr=12.0, total_speedup=3.0),
        candidate("slow", total_speedup=1.1),
        candidate("good"),
    ]
    assert [found.label for found, _ in judge(columns)] == ["good", "slow", "fast"]


def test_a_run_that_never_was_sparse():
    dense = Column("it", "psa", column("psa").averages, {"attention_density": "it ran dense throughout (warm-up)"})
    ((_, verdict),) = judge([DENSE, dense])
    assert verdict.answer == "No time was saved: it ran dense throughout." and "warm-up" in verdict.cause
    assert verdict.advice == "more denoising steps than the dense ones, or --max-error 0.1 instead of these"


@pytest.mark.parametrize(
    ("density", "run", "reasons", "words"),
    [
        (None, 1.0, ("dense preset",), None),
        (
            *(None, 1.0, ("fewer than 512 tokens",)),
            "No time was saved: all attention ran dense. Why: fewer than 512 tokens. Try: a larger",
        ),
        (
            *(None, 1.0, ("dense layer", "last steps")),
            "No time was saved: all attention ran dense. Why: dense layer, last steps. Try: fewer --dense-last-steps",
        ),
        (
            *(None, 1.0, ("dense layer",)),
            "No time was saved: all attention ran dense. Why: dense layer. Try: fewer --dense-layers",
        ),
        (
            *(None, 1.0, ("dense is faster at this density",)),
            "No time was saved: all attention ran dense. Why: dense is faster at this density. Try: a preset that",
        ),
        (None, 1.0, ("warm-up",), "No time was saved: all attention ran dense. Why: warm-up. Try: more denoising"),
        (0.3, 0.8, ("warm-up",), "Little was saved: attention did 80% of the dense work. Why: dense parts (warm-up)"),
        (0.3, 0.4, ("warm-up",), None),
    ],
)
def test_of_videos_without_dense_ones(density, run, reasons, words):
    cost = SimpleNamespace(attention_density=density, run_density_with_estimation=run, dense_reasons=reasons)
    told = judge_alone([cost])
    assert told is None if words is None else told.startswith(words)
