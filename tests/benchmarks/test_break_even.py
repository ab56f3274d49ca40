"""From which length on a preset counts as faster, by hand; and that one is measured as its section describes it."""

from __future__ import annotations

from dataclasses import replace

import break_even
import pytest
import torch


def cases(*speedups: float) -> list[break_even.Row]:
    return [
        {"visual_tokens": 256 * 2**index, "prefix_tokens": 226, "speedup": speedup}
        for index, speedup in enumerate(speedups)
    ]


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ((0.5, 0.9, 1.1, 3.0), 1024 + 226),
        ((0.5, 1.2, 0.9, 3.0), 2048 + 226),
        ((1.5, 2.0), 256 + 226),
        ((2.0, 0.9), None),
    ],
    ids=["once", "not for good", "always", "not at the end"],
)
def test_the_break_even_length_is_faster_and_so_are_all_longer_ones(
    speedups: tuple[float, ...], expected: int | None
) -> None:
    assert break_even.break_even(cases(*speedups)) == expected


def test_a_preset_is_measured_with_its_models_heads_and_text() -> None:
    presets = {name: (config, shape) for name, config, shape in break_even.shipped_presets()}
    assert "Qwen2.5-VL/psa_balanced" not in presets
    config, shape = presets["CogVideo_5b/psa_4steps"]
    case = break_even.measure("x", config, replace(shape.with_heads(1), grid=(2, 4, 4)), "float32", torch.device("cpu"))
    assert (case["dim"], case["prefix_tokens"], case["visual_tokens"]) == (64, 226, 32)
    assert 0 < case["density"] <= 1 and case["dense_seconds"] > 0 and case["sparse_seconds"] > 0
