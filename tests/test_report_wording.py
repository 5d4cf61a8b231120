"""Numbers in words, and failures by reason."""

from __future__ import annotations

import pytest

from perception_r1_jax.report import wording
from perception_r1_jax.report.failures import count_failures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (-0.5, "−0.5"),
        (0.12345, "0.123"),
        (1810.4, "1,810"),
        (2.5e-7, "2.5×10⁻⁷"),
        (3e6, "3×10⁶"),
    ],
)
def test_numbers(value, text):
    assert wording.number(value) == text


def test_other_words():
    assert wording.percent(0.6254) == "62.5%"
    assert wording.interval((-0.021, 0.1)) == "−2.1 to +10.0"
    assert [wording.p_value(p) for p in (1.0, 0.0386, 1.23e-6)] == ["1", "0.039", "1.2×10⁻⁶"]
    assert [wording.duration(s) for s in (9.24, 432, 57600)] == ["9.2 s", "7 min 12 s", "16 h 0 min"]
    assert [wording.counted(n, "problem") for n in (1, 2300)] == ["1 problem", "2,300 problems"]
    assert wording.setting_text(["a", 1e-6]) == '["a", 1e-06]'


def test_failures_are_summed_by_reason():
    lines = [
        {
            "step": 1,
            "judge/ok": 7,
            "judge/missing": 1,
            "judge/failure_rate": 0.125,
            "reward/dropped": 1,
            "data/dropped": 0,
        },
        {
            "step": 2,
            "judge/ok": 6,
            "judge/empty": 2,
            "judge/failure_rate": None,
            "reward/dropped": 2,
            "data/dropped": 3,
        },
        {"step": 3, "judge/ok": 8, "reward/accuracy/timed_out": 1, "reward/accuracy/ok": 7, "data/dropped": 3},
    ]
    failures = count_failures(lines)
    assert failures.statuses == {
        "Judgements": {"ok": 21, "empty": 2, "missing": 1},
        "Comparisons of answers": {"ok": 7, "timed_out": 1},
    }
    assert next(iter(failures.statuses["Judgements"])) == "ok"
    assert (failures.responses, failures.problems, failures.updates) == (3, 3, 0)
