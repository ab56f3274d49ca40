from __future__ import annotations

import pytest

from psa_triton.tools.bench.measure import Case
from psa_triton.tools.bench.report import judge


def case(tokens: int, dense: float, sparse: float) -> Case:
    return Case(tokens, density=0.1, estimation_share=0.01, seconds={"sdpa": dense, "psa": sparse})


def test_the_crossing_lies_between_two_lengths_in_proportion() -> None:
    # Half as fast at 1,000 tokens, twice as fast at 4,000: even at the geometric mean.
    verdict = judge([case(1000, 1, 2), case(4000, 16, 8)], 4000)
    assert verdict.pays_from == 2000
    assert verdict.speedup == 2
    assert verdict.measured
    assert "from about 2,000 tokens on" in verdict.sentence()
    assert "2.0 times as fast as dense attention (measured)" in verdict.sentence()


def test_a_lucky_short_length_is_not_where_it_pays() -> None:
    cases = [case(1000, 1, 0.9), case(2000, 4, 5), case(4000, 16, 8)]
    assert 2000 < (judge(cases, 4000).pays_from or 0) < 4000


def test_paying_at_every_length() -> None:
    assert judge([case(1000, 2, 1), case(2000, 8, 3)], 2000).pays_from == 1000


def test_paying_at_none() -> None:
    verdict = judge([case(1000, 1, 2), case(2000, 4, 5)], 2000)
    assert verdict.pays_from is None
    assert "does not pay here up to 2,000 tokens" in verdict.sentence()


def test_a_longer_shape_is_extrapolated_by_power_laws() -> None:
    # Dense grows with the square, sparse in proportion: at twice the length the speed-up doubles.
    verdict = judge([case(1000, 1, 2), case(2000, 4, 4)], 4000)
    assert verdict.speedup == pytest.approx(2)
    assert not verdict.measured
    assert "(extrapolated)" in verdict.sentence()


def test_no_exponent_beyond_the_square_is_believed() -> None:
    verdict = judge([case(1000, 1, 1), case(2000, 100, 2)], 4000)
    assert verdict.speedup == pytest.approx(400 / 4)


def test_no_case_is_an_error() -> None:
    with pytest.raises(ValueError, match="cases: expected at least one"):
        judge([], 1000)
