import copy
import math

import pytest

from psa_triton.tools.evaluation.summary import markdown, notes, pace, summarise


def cost(attention, total=10.0, density=None):
    return {
        "sparse_attention_seconds": attention if density else 0.0,
        "dense_attention_seconds": 0.0 if density else attention,
        "transformer_seconds": total - 1,
        "total_seconds": total,
        "attention_density": density,
        "attention_density_with_estimation": density and density + 0.03,
        "run_density_with_estimation": density and density + 0.1,
        "dense_reasons": [] if density else ["warm-up"],
    }


def scores(psnr, ssim=0.9):
    return {
        "psnr": {"mean": psnr, "frames": [psnr], "note": None},
        "ssim": {"mean": ssim, "frames": [ssim], "note": None},
        "vmaf": {"mean": None, "frames": [], "note": "no ffmpeg"},
    }


def make_case(psnr, attention=2.0, ceiling=True):
    return {
        "dense": {"cost": cost(4.0)},
        "ceiling": {"label": "dense again", "cost": cost(4.0), "fidelity": scores(50.0)} if ceiling else None,
        "candidates": [{"label": "half", "cost": cost(attention, 8.0, 0.35), "fidelity": scores(psnr)}],
    }


def test_means_and_standard_errors_by_hand():
    columns = summarise([make_case(30.0), make_case(34.0), make_case(38.0)])
    assert [(column.label, column.role) for column in columns] == [
        *(("dense", "dense"), ("dense again", "ceiling"), ("half", "psa"))
    ]
    psnr = columns[2].averages["psnr"]
    assert (psnr.mean, psnr.count) == (34.0, 3)
    assert psnr.standard_error == pytest.approx(4 / math.sqrt(3)), "the deviation of 30, 34, 38 is 4"
    assert summarise([make_case(30.0)])[2].averages["psnr"].standard_error is None


def test_speedups_are_means_of_ratios():
    columns = summarise([make_case(30.0, attention=2.0), make_case(30.0, attention=4.0)])
    assert columns[2].mean("attention_speedup") == pytest.approx((2 + 1) / 2)
    assert columns[2].mean("total_speedup") == pytest.approx(10 / 8)
    assert columns[0].mean("attention_speedup") is None


def test_a_video_that_is_missing_in_a_case_is_left_out_of_its_mean():
    broken = {**make_case(0.0, ceiling=False), "candidates": []}
    columns = summarise([make_case(30.0), broken])
    assert columns[0].averages["total_seconds"].count == 2
    assert columns[1].averages["psnr"].count == columns[2].averages["psnr"].count == 1


def test_the_table_in_markdown():
    columns = summarise([make_case(30.0), make_case(34.0)])
    text = markdown(columns, cases=2)
    lines = text.splitlines()
    assert lines[0] == "|  | dense | ceiling (dense again) | half |"
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert "| PSNR to dense, dB | - | 50.0 ± 0.0 | 32.0 ± 2.0 |" in lines
    assert "| density of sparse attention | - | - | 35.0% ± 0.0% |" in lines
    assert "| self-attention, times as fast | - | - | 2.00 ± 0.00 |" in lines
    assert not any("ST-LPIPS" in line for line in lines), "nothing was measured"
    assert lines[-1] == "* VMAF to dense: no ffmpeg"
    assert "Means over 2 cases (prompts x seeds) ± standard error." in lines
    assert "One prompt, one seed." in markdown(summarise([make_case(30.0)]), cases=1)


@pytest.mark.parametrize(
    ("speedup", "words"), [(2.0, "2.00 times as fast"), (1.02, "as fast"), (0.5, "2.00 times as slow")]
)
def test_a_pace_in_words(speedup, words):
    assert pace(speedup) == words


def test_a_run_that_never_was_sparse_is_noted():
    case = make_case(30.0)
    case["candidates"][0]["cost"] = cost(4.0)
    other = copy.deepcopy(case)
    other["candidates"][0]["label"] = "third"
    columns = summarise([case, other])
    assert [note for note in notes(columns) if "throughout" in note] == [
        f"density of sparse attention: {label} ran dense throughout (warm-up)" for label in ("half", "third")
    ]
