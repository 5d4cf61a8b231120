"""Line charts as numbers that the template writes as inline SVG.

Drawn here and not by a plotting library, because the page's own style sheet can then set colours, dashes and type: one
chart serves light and dark, screen and print, and its texts stay texts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from perception_r1_jax.report.series import smooth, window_of
from perception_r1_jax.report.wording import number

WIDTH, HEIGHT = 340, 180
LEFT, RIGHT, TOP, BOTTOM = 48, 332, 10, 154
"""The edges of the plotting area."""

TICKS = 4


@dataclasses.dataclass(frozen=True)
class Series:
    """A line to draw: its name, "" where the chart's title says it; float64 [points], NaN where there is no value."""

    name: str
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Line:
    """A drawn line.

    Attributes:
        name: of the series.
        raw: SVG path of the values, "" where the trend shows them all.
        trend: SVG path of the running mean.
        dots: (x, y) of the values in a chart of few points.
        ends: the trend's first and last value in words.
    """

    name: str
    raw: str
    trend: str
    dots: Sequence[tuple[float, float]]
    ends: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart ready to be written.

    Attributes:
        title: of the chart.
        lines: one for each series.
        x_ticks, y_ticks: (position, label).
        rule: the position and label of a level to compare with, or None.
    """

    title: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    rule: tuple[float, str] | None = None

    @property
    def description(self) -> str:
        """The chart in words, for those who do not see it."""
        moves = "; ".join(f"{line.name} from {line.ends[0]} to {line.ends[1]}".strip() for line in self.lines)
        return f"{self.title}: {moves}"


def draw_chart(title: str, steps: Sequence[int], series: Sequence[Series], *, level: float | None = None) -> Chart:
    """Lays a chart out: thin lines for values, thick ones for their running means; dots instead in a short one.

    Args:
        title: of the chart.
        steps: [points], where each value stands on the horizontal axis.
        series: one or more lines over the same steps, at least one of them with a value.
        level: a value to mark across the chart.
    """
    window = window_of(len(steps))
    known = np.concatenate([line.values for line in series] + [np.array([] if level is None else [level])])
    y_values = nice_ticks(np.nanmin(known), np.nanmax(known))
    x_values = [value for value in nice_ticks(steps[0], steps[-1]) if steps[0] <= value <= steps[-1]]
    xs = _scale(steps, steps[0], steps[-1], LEFT, RIGHT)

    def to_y(values):
        return _scale(values, y_values[0], y_values[-1], BOTTOM, TOP)

    return Chart(
        title=title,
        lines=[_draw_line(line, xs, to_y, window) for line in series],
        x_ticks=list(zip(_scale(x_values, steps[0], steps[-1], LEFT, RIGHT).tolist(), map(number, x_values))),
        y_ticks=list(zip(to_y(y_values).tolist(), map(number, y_values))),
        rule=None if level is None else (float(to_y([level])[0]), number(level)),
    )


def _draw_line(series: Series, xs: np.ndarray, to_y, window: int) -> Line:
    trend = smooth(series.values, window)
    known = trend[~np.isnan(trend)]
    few = window == 1
    shown = ~np.isnan(series.values)
    return Line(
        name=series.name,
        raw="" if few else _path(xs, to_y(series.values)),
        trend=_path(xs, to_y(trend)),
        dots=list(zip(xs[shown].tolist(), to_y(series.values[shown]).tolist())) if few else [],
        ends=(number(known[0]), number(known[-1])),
    )


def _path(xs: np.ndarray, ys: np.ndarray) -> str:
    """An SVG path that is broken where there is no value."""
    parts, pen_down = [], False
    for x, y in zip(xs, ys):
        if not math.isnan(y):
            parts.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = not math.isnan(y)
    return "".join(parts)


def _scale(values, low: float, high: float, start: float, end: float) -> np.ndarray:
    span = (high - low) or 1.0
    return start + (np.asarray(values, np.float64) - low) / span * (end - start)


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round values, 1, 2 or 5 times a power of ten apart, from one at or below `low` to one at or above `high`.

    >>> nice_ticks(0.13, 0.58)
    [0.0, 0.2, 0.4, 0.6]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]
