"""McNemar's exact test against the paper, its definition and scipy; Tango's interval against what is published."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.stats import binomtest

from perception_r1_jax.evaluation.mcnemar import difference_interval, mcnemar_exact

Z_SQUARED = 1.959963984540054**2


@pytest.mark.parametrize(("b", "c", "p"), [(1, 5, 0.219), (2, 4, 0.688), (2, 10, 0.0386)])
def test_the_p_values_of_the_paper(b, c, p):
    assert float(f"{mcnemar_exact(b, c):.3g}") == p
    assert mcnemar_exact(c, b) == mcnemar_exact(b, c)


def test_nothing_changed_or_as_much_both_ways():
    assert mcnemar_exact(0, 0) == 1.0
    assert [mcnemar_exact(n, n) for n in (1, 2, 25, 1000)] == [1.0] * 4
    assert mcnemar_exact(3, 4) == 1.0


def test_the_definition_and_scipy():
    rng = random.Random(0)
    for _ in range(100):
        b, c = rng.randint(0, 60), rng.randint(0, 60)
        exact = min(1.0, 2 * sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c))
        assert mcnemar_exact(b, c) == pytest.approx(exact, rel=1e-12)
        assert mcnemar_exact(b, c) == pytest.approx(binomtest(b, b + c).pvalue if b + c else 1.0, rel=1e-9)


def test_any_size():
    assert mcnemar_exact(0, 1000) == pytest.approx(2.0**-999, rel=1e-9)
    assert mcnemar_exact(0, 10**6) == 0.0  # far below the smallest float
    assert mcnemar_exact(500_000, 502_000) == pytest.approx(0.0457, abs=3e-4)  # 1.998 standard deviations
    total, term = 0, 1  # C(6001, k), as whole numbers
    for k in range(2901):
        total, term = total + term, term * (6001 - k) // (k + 1)
    assert mcnemar_exact(2900, 3101) == pytest.approx(2 * total / 2**6001, rel=1e-9)


def test_a_negative_number_is_an_error():
    with pytest.raises(ValueError, match="3 and -1 problems"):
        mcnemar_exact(3, -1)


def test_the_published_interval():
    # Airway reactivity of 21 children, 1 gained, 7 lost (Fagerland, Lydersen and Laake, Statistics in Medicine 2014).
    assert difference_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def closed_form(gained: int, lost: int, pairs: int) -> np.ndarray:
    """Where Tango's score meets its limit: roots of a quartic (Yang, Sun and Hardin, Statistics in Medicine 2013)."""
    n, d, s, g = pairs, gained - lost, gained + lost, Z_SQUARED
    return np.roots([
        n**2 * (n / g + 1) ** 2,
        -n * d * (n / g + 1) * (4 * n / g + 1),
        2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (s / g + 1),
        n * d * (2 * s / g + 1) - d**3 * (4 * n / g + 1) / g,
        d**2 * (d**2 / g - s) / g,
    ])  # fmt: skip


def test_the_interval_is_that_of_the_closed_form():
    rng = random.Random(1)
    for _ in range(50):
        pairs = rng.randint(20, 500)
        gained, lost = rng.randint(1, pairs // 3), rng.randint(1, pairs // 3)
        if gained != lost:
            roots = closed_form(gained, lost, pairs).real
            interval = difference_interval(gained, lost, pairs)
            assert interval == pytest.approx((roots.min(), roots.max()), abs=1e-6)


def test_what_every_interval_must_be():
    for gained, lost, pairs in [(0, 0, 50), (50, 0, 50), (0, 50, 50), (12, 12, 40), (1, 0, 1), (30, 5, 400)]:
        low, high = difference_interval(gained, lost, pairs)
        assert -1 <= low <= (gained - lost) / pairs <= high <= 1
        assert low < high
        assert difference_interval(lost, gained, pairs) == pytest.approx((-high, -low))
    assert difference_interval(0, 0, 50)[1] == pytest.approx(Z_SQUARED / (50 + Z_SQUARED))
    narrow, wide = difference_interval(30, 5, 400, level=0.8), difference_interval(30, 5, 400)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("table", [(0, 0, 0), (3, 4, 6), (-1, 1, 5)])
def test_no_such_table(table):
    with pytest.raises(ValueError, match=f"{table[0]} gained and {table[1]} lost of {table[2]} pairs"):
        difference_interval(*table)
