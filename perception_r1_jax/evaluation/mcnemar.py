"""Did a change help? McNemar's exact test and the interval of the difference, for verdicts on the same problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

from scipy.special import betainc

LEVEL = 0.95
"""The share of intervals that hold the true difference."""


def mcnemar_exact(b: int, c: int) -> float:
    """The p-value of McNemar's exact two-sided test.

    min(1, 2 sum_{k <= min(b, c)} C(b + c, k) / 2^(b + c)): how often at least so uneven a split of the b + c problems
    whose verdict changed would come about if each were as likely to change either way. The sum is the binomial
    distribution's, in the form of the incomplete beta function, which neither overflows nor takes long for any size.

    Args:
        b: problems whose verdict changed one way.
        c: problems whose verdict changed the other way.

    Raises:
        ValueError: a negative number.
    """
    if min(b, c) < 0:
        raise ValueError(f"{b} and {c} problems: neither number can be negative.")
    return min(1.0, 2.0 * float(betainc(max(b, c), min(b, c) + 1, 0.5))) if b + c else 1.0


def difference_interval(gained: int, lost: int, pairs: int, level: float = LEVEL) -> tuple[float, float]:
    """Tango's score interval for the difference of two rates on the same problems, (gained - lost) / pairs.

    It holds the differences that the score test does not reject, keeps its level with few problems too, and stays
    within [-1, 1] (Tango, Statistics in Medicine 17, 1998).

    Raises:
        ValueError: no pair, or more changes than pairs.
    """
    if not 0 <= gained + lost <= pairs or min(gained, lost) < 0 or pairs == 0:
        raise ValueError(f"{gained} gained and {lost} lost of {pairs} pairs.")
    limit = NormalDist().inv_cdf((1 + level) / 2) ** 2

    def rejected(difference: float) -> bool:
        deviation = gained - lost - pairs * difference
        return deviation**2 > limit * _variance(gained, lost, pairs, difference)

    found = (gained - lost) / pairs
    return _edge(rejected, found, -1.0), _edge(rejected, found, 1.0)


def _variance(gained: int, lost: int, pairs: int, difference: float) -> float:
    """Of gained - lost where the true difference is this one, the rate of losses being the likeliest under it."""
    b = (2 * pairs - gained + lost) * difference - gained - lost
    root = math.sqrt(max(b * b + 8 * pairs * lost * difference * (1 - difference), 0.0))
    loss_rate = (root - b) / (4 * pairs)
    return pairs * (2 * loss_rate + difference * (1 - difference))


def _edge(rejected: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where the differences that are not rejected end on the way from `inside` to `outside`, by bisection."""
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
    return inside
