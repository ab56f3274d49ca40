"""`benchmarks/amplification.py`: what it adds and measures, by hand, and the whole on one short video."""

import amplification
import numpy as np
import pytest
import torch
from programs import benchmark


def test_noise_has_the_size_asked_for_and_is_the_same_again():
    out = torch.randn(1, 50, 192, generator=torch.Generator().manual_seed(1))
    first, again = (amplification.with_noise(0.1)(out) for _ in range(2))
    assert float((first - out).norm() / out.norm()) == pytest.approx(0.1, rel=1e-5)
    assert torch.equal(first, again)


def test_psnr_of_a_known_difference():
    assert amplification.psnr(np.full((2, 4, 4, 3), 0.6), np.full((2, 4, 4, 3), 0.5)) == pytest.approx(20.0, abs=1e-4)


def test_one_short_video(tmp_path):
    rows = benchmark("amplification.py", tmp_path, "--quick")["rows"]
    for guidance in {row["guidance"] for row in rows}:
        noise = [row["psnr"][0] for row in rows if row["guidance"] == guidance and row["kind"] == "noise"]
        assert noise == sorted(noise, reverse=True), "more noise, less PSNR"
        budgets = {f"budget {budget:g}" for budget in amplification.BUDGETS}
        errors = [row["error"] for row in rows if row["guidance"] == guidance and row["name"] in budgets]
        assert errors == sorted(errors, reverse=True), "more budget, less error"
