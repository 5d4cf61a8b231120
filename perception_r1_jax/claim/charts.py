"""The ablation's charts: what the visual reward adds, every run, and what happened on the way."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from perception_r1_jax.claim.comparison import after, compare, measured, pair_seeds
from perception_r1_jax.claim.record import Record, read_records
from perception_r1_jax.claim.svg import INK, PALE, Axis, document, dot, line, text
from perception_r1_jax.claim.variants import FULL, PLAIN, VARIANTS
from perception_r1_jax.report.wording import number, points

COLOURS = dict(zip(VARIANTS, ("#1b6ca8", "#c0392b", "#7f8c8d", "#5dade2", "#154360", "#b9770e")))
CURVES = {
    "reward/accuracy": "accuracy reward",
    "reward/visual": "visual reward (judge)",
    "reward/repetition": "repetition penalty",
    "rollout/length_mean": "length, tokens",
}
"""Metrics of a record that are drawn over the run, and their titles."""


def write_charts(out: Path) -> list[Path]:
    """Draws the records of a folder; returns the files beside them, those that there are data for.

    Raises:
        UserError: there are no records, or they are not of one ablation.
    """
    records = read_records(out)
    charts = {"effect": draw_effect(records), "runs": draw_runs(records), "curves": draw_curves(records)}
    paths = {out / f"{name}.svg": chart for name, chart in charts.items() if chart}
    for path, chart in paths.items():
        path.write_text(chart, encoding="utf-8")
    return list(paths)


def draw_effect(records: Sequence[Record]) -> str:
    """The difference that the visual reward makes to each measure; "" without a pair of runs."""
    pairs = pair_seeds(records, FULL, PLAIN)
    if not pairs:
        return ""
    differences = [compare(pairs, rate) for rate in measured(records)]
    intervals = [difference.seed_interval or difference.problem_interval for difference in differences]
    ends = [end for interval in intervals for end in interval]
    axis = Axis.over([0.0, *ends, *(value for difference in differences for value in difference.values)], 110, 560)
    shapes = [*_grid(axis, 30, 220, points), line([(axis(0), 30), (axis(0), 220)])]
    for row, (difference, interval) in enumerate(zip(differences, intervals)):
        y = 52 + 48 * row
        shapes.append(text(100, y + 4, difference.measure, "end", "bold"))
        shapes.append(line([(axis(interval[0]), y), (axis(interval[1]), y)], COLOURS[FULL], 3))
        shapes.append(line([(axis(difference.mean), y - 9), (axis(difference.mean), y + 9)], COLOURS[FULL], 3))
        shapes += [dot(axis(value), y + 15, INK, 2.5) for value in difference.values]
    title = "With the visual reward less without it, percentage points: mean, 95% over seeds, each seed"
    return document(590, 245, title, [text(10, 18, title), *shapes])


def draw_runs(records: Sequence[Record]) -> str:
    """Each run's measures after training, a dot each; the upright line is the policy before."""
    names = [name for name in VARIANTS if any(record.variant == name for record in records)]
    height = 40 + 24 * len(names)
    shapes = []
    for panel, rate in enumerate(measured(records)):
        left, top = 120 + 250 * (panel % 2), 30 + (height + 30) * (panel // 2)
        shapes.append(text(left, top - 10, f"{rate}, %", weight="bold"))
        shapes += _runs_panel(records, names, rate, left, top, labels=panel % 2 == 0)
    return document(620, 2 * height + 70, "Every run after training; the line is the policy before", shapes)


def _runs_panel(
    records: Sequence[Record], names: Sequence[str], rate: str, left: float, top: float, *, labels: bool
) -> Iterator[str]:
    before = statistics.fmean(record.result[f"{rate}_before"] for record in records)
    values = [(record.variant, after(record, rate)) for record in records]
    bottom = top + 24 * len(names)
    axis = Axis.over([before, *(value for _, value in values)], left, left + 220)
    yield from _grid(axis, top, bottom, lambda value: number(100 * value))
    yield line([(axis(before), top), (axis(before), bottom)])
    for row, name in enumerate(names):
        y = top + 12 + 24 * row
        if labels:
            yield text(left - 10, y + 4, name, "end")
        yield from (dot(axis(value), y, COLOURS[name]) for variant, value in values if variant == name)


def draw_curves(records: Sequence[Record]) -> str:
    """Means over seeds of some metrics in each tenth of the run, by variant; "" where no run has any."""
    shapes = []
    for panel, (metric, title) in enumerate(CURVES.items()):
        means = {name: _mean_curve(records, name, metric) for name in VARIANTS}
        means = {name: curve for name, curve in means.items() if len(curve) > 1}
        if means:
            shapes += _curves_panel(title, means, 50 + 300 * (panel % 2), 30 + 190 * (panel // 2))
    names = [name for name in VARIANTS if any(record.variant == name for record in records)]
    legend = [text(50 + 95 * place, 400, name, colour=COLOURS[name]) for place, name in enumerate(names)]
    return document(620, 412, "The runs on their way: means over seeds", [*shapes, *legend]) if shapes else ""


def _mean_curve(records: Sequence[Record], variant: str, metric: str) -> list[float]:
    """The mean over seeds in each tenth; empty where a run lacks the metric."""
    curves = [record.curves.get(metric) or [] for record in records if record.variant == variant]
    return [] if any(None in curve for curve in curves) else [statistics.fmean(part) for part in zip(*curves)]


def _curves_panel(title: str, means: dict[str, list[float]], left: float, top: float) -> Iterator[str]:
    axis = Axis.over([value for curve in means.values() for value in curve], top + 130, top)
    tenths = Axis([1, max(len(curve) for curve in means.values())], left, left + 240)
    yield text(left, top - 10, title, weight="bold")
    for tick in axis.ticks:
        yield line([(left, axis(tick)), (left + 240, axis(tick))], PALE)
        yield text(left - 6, axis(tick) + 4, number(tick), "end")
    for tick in tenths.ticks:
        yield text(tenths(tick), top + 146, f"tenth {tick:g}", "middle")
    for name, curve in means.items():
        yield line([(tenths(part), axis(value)) for part, value in enumerate(curve, 1)], COLOURS[name], 1.8)


def _grid(axis: Axis, top: float, bottom: float, label) -> Iterator[str]:
    """Upright lines at an axis's ticks, labelled below."""
    for tick in axis.ticks:
        yield line([(axis(tick), top), (axis(tick), bottom)], PALE)
        yield text(axis(tick), bottom + 16, label(tick), "middle")
