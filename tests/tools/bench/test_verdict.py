import pytest

from psa_triton.tools.bench.measure import Case
from psa_triton.tools.bench.report import judge


def case(tokens, dense, sparse):
    return Case(tokens, density=0.1, estimation_share=0.01, seconds={"sdpa": dense, "psa": sparse})


@pytest.mark.parametrize(
    ("cases", "tokens", "pays_from", "speedup", "words"),
    [
        # Half as fast at 1,000 tokens, twice as fast at 4,000: even at the geometric mean.
        pytest.param([(1000, 1, 2), (4000, 16, 8)], 4000, 2000, 2, "from about 2,000 tokens on", id="between"),
        pytest.param([(1000, 2, 1), (2000, 8, 4)], 2000, 1000, 2, "(measured)", id="at-every-length"),
        pytest.param([(1000, 1, 2), (2000, 4, 5)], 2000, None, 0.8, "does not pay here up to 2,000", id="at-none"),
        # Dense grows with the square, sparse in proportion: at twice the length the speed-up doubles.
        pytest.param([(1000, 1, 2), (2000, 4, 4)], 4000, None, 2, "(extrapolated)", id="power-laws"),
        pytest.param([(1000, 1, 1), (2000, 100, 2)], 4000, 1000, 100, "100.0 times", id="at-most-squares"),
    ],
)
def test_where_it_pays(cases, tokens, pays_from, speedup, words):
    verdict = judge([case(*each) for each in cases], tokens)
    assert verdict.pays_from == pays_from
    assert verdict.speedup == pytest.approx(speedup)
    assert verdict.measured == (cases[-1][0] == tokens)
    assert words in verdict.sentence()


def test_a_lucky_short_length_is_not_where_it_pays():
    cases = [case(1000, 1, 0.9), case(2000, 4, 5), case(4000, 16, 8)]
    assert 2000 < (judge(cases, 4000).pays_from or 0) < 4000


def test_no_case_is_an_error():
    with pytest.raises(ValueError, match="cases: expected at least one"):
        judge([], 1000)
