"""Charts: ticks, lines with gaps, and what is said to those who do not see them; and the numbers below them."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.report.plots import BOTTOM, LEFT, RIGHT, TOP, Series, draw_chart, nice_ticks
from perception_r1_jax.report.series import column, smooth, tenths, window_of

NAN = np.nan


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.13, 0.58, [0, 0.2, 0.4, 0.6]),
        (1, 60, [0, 20, 40, 60]),
        (-2, 0, [-2, -1.5, -1, -0.5, 0]),
        (3, 3, [3, 4]),
        (0, 0, [0, 0.5]),
        (2.5e-7, 9e-7, [2e-7, 4e-7, 6e-7, 8e-7, 1e-6]),
        (0, 123456, [0, 50000, 100000, 150000]),
    ],
)
def test_ticks_are_round_and_hold_the_data(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_smoothing_leaves_out_what_is_absent():
    values = np.array([1.0, NAN, 3.0, 5.0, NAN, NAN, NAN])
    np.testing.assert_array_equal(smooth(values, 3), [1, 2, 4, 4, 5, NAN, NAN])
    np.testing.assert_array_equal(smooth(values, 1), values)
    assert smooth(np.arange(50.0), window_of(50))[25] == 25


def test_windows_are_odd_and_near_a_tenth():
    assert [window_of(steps) for steps in (1, 19, 20, 60, 275)] == [1, 1, 5, 7, 27]


def test_tenths():
    assert tenths([3, 3, 1, 2]) == [(1, 1), (2, 2), (3, 3)]
    assert tenths(range(1, 61))[::9] == [(1, 6), (55, 60)]


def test_a_column_of_metrics():
    lines = [{"a": 1}, {"a": None}, {}]
    np.testing.assert_array_equal(column(lines, "a"), [1, NAN, NAN])


def test_a_chart_lies_inside_its_frame():
    chart = draw_chart("Reward", range(1, 31), [Series("r", np.linspace(0.13, 0.58, 30))], level=0.5)
    (line,) = chart.lines
    assert line.raw.startswith(f"M{LEFT:.1f} ")
    points = np.array([pair.split() for pair in line.raw[1:].split("L")], float)
    assert points[-1, 0] == RIGHT
    assert points[:, 1].min() > TOP
    assert points[:, 1].max() < BOTTOM
    assert chart.y_ticks[0] == (BOTTOM, "0")
    assert chart.y_ticks[-1] == (TOP, "0.6")
    assert chart.rule == (pytest.approx(BOTTOM - (BOTTOM - TOP) * 0.5 / 0.6), "0.5")
    assert chart.description == "Reward: r from 0.146 to 0.564"


def test_a_line_is_broken_where_there_is_no_value():
    values = np.array([0.0, 1.0, NAN, 1.0] + [0.5] * 20)
    (line,) = draw_chart("x", range(24), [Series("", values)]).lines
    assert (line.raw.count("M"), line.trend.count("M")) == (2, 1)


def test_a_short_run_has_dots():
    chart = draw_chart("x", [1, 2, 3], [Series("a", np.array([1.0, NAN, 2.0])), Series("b", np.ones(3))])
    assert [len(line.dots) for line in chart.lines] == [2, 3]
    assert [line.raw for line in chart.lines] == ["", ""]
    assert chart.description == "x: a from 1 to 2; b from 1 to 1"


def test_a_chart_of_one_step():
    assert draw_chart("x", [1], [Series("", np.array([2.0]))]).lines[0].dots == [(LEFT, BOTTOM)]
