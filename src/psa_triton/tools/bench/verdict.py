"""From how many tokens on PSA pays, from the times of several lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from psa_triton.tools.bench.measure import DENSE, PSA, Case


@dataclass(frozen=True)
class Verdict:
    """What the measured lengths say.

    Attributes:
        pays_from: tokens from which on the whole operator is faster than dense attention; None where it never was.
        longest: the longest length measured.
        tokens: length of the asked-for shape.
        speedup: of the operator there.
        measured: whether that length was measured; else both times are extended from the two longest that were.
    """

    pays_from: int | None
    longest: int
    tokens: int
    speedup: float
    measured: bool

    def sentence(self) -> str:
        """The verdict in words."""
        how = "measured" if self.measured else "extrapolated"
        at = f"at {self.tokens:,} tokens it is {self.speedup:.1f} times as fast as dense attention ({how})"
        if self.pays_from is None:
            return f"PSA does not pay here up to {self.longest:,} tokens, the longest measured; {at}."
        return f"PSA pays here from about {self.pays_from:,} tokens on; {at}."


def judge(cases: Sequence[Case], tokens: int) -> Verdict:
    """Judge cases of growing length for a shape of `tokens` tokens.

    Raises:
        ValueError: no case.
    """
    if not cases:
        raise ValueError("cases: expected at least one, got none")
    last = cases[-1]
    if last.tokens == tokens:
        return Verdict(_crossing(cases), last.tokens, tokens, last.speedup, measured=True)
    dense, sparse = (_extended(cases, name, tokens) for name in (DENSE, PSA))
    return Verdict(_crossing(cases), last.tokens, tokens, dense / sparse, measured=False)


def _crossing(cases: Sequence[Case]) -> int | None:
    """Where the speed-up last passes 1 on its way up, on a straight line in logarithms between two lengths."""
    if cases[-1].speedup <= 1:
        return None
    for shorter, longer in reversed(list(pairwise(cases))):
        if shorter.speedup <= 1:
            low, high = math.log(shorter.speedup), math.log(longer.speedup)
            part = -low / (high - low)
            return round(shorter.tokens * (longer.tokens / shorter.tokens) ** part)
    return cases[0].tokens


def _extended(cases: Sequence[Case], name: str, tokens: int) -> float:
    """Seconds at `tokens`: the power law through the two longest cases, the square of the length if there is but one.

    An exponent is kept between 1 and 2: attention grows no faster than the square, and no slower than its input.
    """
    last = cases[-1]
    exponent = 2.0
    if len(cases) > 1:
        before = cases[-2]
        slope = math.log(last.seconds[name] / before.seconds[name]) / math.log(last.tokens / before.tokens)
        exponent = min(2.0, max(1.0, slope))
    return last.seconds[name] * (tokens / last.tokens) ** exponent
