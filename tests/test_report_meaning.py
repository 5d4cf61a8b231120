"""The sentences of a result say what the tests do, and no more."""

from __future__ import annotations

import pytest

from perception_r1_jax.evaluation.pairs import Pairs
from perception_r1_jax.report.before_after import BeforeAfter
from perception_r1_jax.report.meaning import beyond_zero, conclude, direction, tell, tell_test
from perception_r1_jax.report.outcome import Outcome, Precision

UP, DOWN, EVEN = Pairs(50, 40, 10, 100), Pairs(50, 10, 40, 100), Pairs(50, 12, 10, 128)


def told(precision=None, **changes) -> str:
    return conclude(Outcome(BeforeAfter(9, ()), changes, precision))


def test_directions_follow_the_test():
    assert [direction(change) for change in (UP, DOWN, EVEN, Pairs(1, 0, 0, 1))] == [1, -1, 0, 0]
    assert direction(Pairs(0, 5, 0, 0)) == 0  # p = 0.0625
    assert direction(Pairs(0, 6, 0, 0)) == 1  # p = 0.03125
    assert [beyond_zero(bounds) for bounds in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1))] == [1, -1, 0, 0]


@pytest.mark.parametrize(
    ("perception", "probe", "said"),
    [
        (UP, UP, "So it sees better"),
        (UP, EVEN, "does not tell whether it sees better or only states more"),
        (UP, DOWN, "So the gain does not come from reading single facts better"),
        (EVEN, UP, "no significant change in perception"),
        (DOWN, EVEN, "perceive less"),
    ],
)
def test_seeing_is_told_by_both_measures(perception, probe, said):
    text = told(perception=perception, probe=probe)
    assert said in text
    assert ("So " in text) == (perception is UP)


def test_what_was_not_measured_is_not_told():
    assert told(accuracy=EVEN) == "Its accuracy shows no significant change."
    assert told(perception=UP).endswith("Without a probe, whether it sees better or only states more is open.")
    assert "a smaller share is true" in told(Precision(0.8, 0.7, 9, 9, (-0.15, -0.05)), perception=EVEN)


def test_numbers_in_words():
    assert tell_test(EVEN) == "12 problems gained, 10 lost; p\u00a0=\u00a00.83, not significant"
    assert tell(UP).startswith("+15.0 points (95% interval +")
    assert tell(DOWN).startswith("−15.0 points (95% interval −")
