"""The curves of a run: which metrics are drawn together, and their means over its tenths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perception_r1_jax.report.agreement import THRESHOLD, Agreement
from perception_r1_jax.report.plots import Chart, Series, draw_chart
from perception_r1_jax.report.series import column, mean, tenths, window_of
from perception_r1_jax.report.workdir import MissingData

REWARDS = {
    "Total": {"reward/total": ""},
    "Accuracy": {"reward/accuracy": ""},
    "Visual perception": {"reward/visual": ""},
    "Format": {"reward/format": ""},
    "Repetition": {"reward/repetition": ""},
    "Own function": {"reward/custom": ""},
    "Penalty for length": {"reward/overlong": ""},
    "Groups whose rewards are all equal": {"reward/groups_without_signal": ""},
}
"""Charts of rewards: title -> metric -> its name in the chart, "" where the title says it."""

TRAINING = {
    "Response length, tokens": {"rollout/length_mean": "mean", "rollout/length_max": "longest"},
    "Responses cut at the limit": {"rollout/cut_share": ""},
    "Entropy, nats a token": {"train/entropy": ""},
    "KL to the starting policy": {"train/kl": ""},
    "KL of the update": {"train/approx_kl": ""},
    "Clipped tokens": {
        "train/clip_fraction_low": "low",
        "train/clip_fraction_high": "high",
        "train/clip_fraction_dual": "dual",
    },
    "Gradient norm before clipping": {"train/grad_norm": ""},
    "Log-probabilities, sampler against training": {"train/rollout_train_logp_diff": ""},
}

JUDGE = {"Failed judgements": {"judge/failure_rate": ""}}


@dataclasses.dataclass(frozen=True)
class Curves:
    """Some charts, and the numbers behind them.

    Attributes:
        charts: of the metrics that vary.
        constant: title -> the value that all its metrics have at each step.
        absent: titles none of whose metrics the run has.
        window: steps that a running mean takes in.
        parts: first and last step of each tenth.
        means: metric -> its mean in each tenth.
    """

    charts: Sequence[Chart]
    constant: Mapping[str, float]
    absent: Sequence[str]
    window: int
    parts: Sequence[tuple[int, int]]
    means: Mapping[str, Sequence[float | None]]


def draw_curves(lines: Sequence[Mapping[str, Any]], groups: Mapping[str, Mapping[str, str]]) -> Curves:
    """Draws groups of metrics, such as `REWARDS`, over the steps of a run.

    Raises:
        MissingData: there are no metrics.
    """
    if not lines:
        raise MissingData("metrics.jsonl is not there, or has no lines.")
    steps = [line["step"] for line in lines]
    drawn = {title: _series(lines, group) for title, group in groups.items()}
    constant = {title: value for title, series in drawn.items() if (value := _constant(series)) is not None}
    names = [name for title, group in groups.items() if drawn[title] for name in group]
    parts = tenths(steps)
    return Curves(
        charts=[
            draw_chart(title, steps, series) for title, series in drawn.items() if series and title not in constant
        ],
        constant=constant,
        absent=[title for title, series in drawn.items() if not series],
        window=window_of(len(steps)),
        parts=parts,
        means={name: _means(steps, column(lines, name), parts) for name in names},
    )


def draw_agreement(agreement: Agreement) -> list[Chart]:
    """Judge against checker over the tenths of the run: correlation, where it is defined at all, and mean shares."""
    steps = [(part.first + part.last) / 2 for part in agreement.parts]
    pearson = np.array([math.nan if part.pearson is None else part.pearson for part in agreement.parts])
    judge, checker = np.array([part.means for part in agreement.parts]).T
    shares = [Series("judge", judge), Series("checker", checker)]
    charts = [draw_chart("Mean share of reflected annotations", steps, shares)]
    if np.isnan(pearson).all():
        return charts
    return [draw_chart("Pearson correlation over responses", steps, [Series("", pearson)], level=THRESHOLD), *charts]


def _series(lines, group: Mapping[str, str]) -> list[Series]:
    columns = ((short, column(lines, name)) for name, short in group.items())
    return [Series(short, values) for short, values in columns if not np.isnan(values).all()]


def _constant(series: Sequence[Series]) -> float | None:
    """The one value of all lines at all steps; None where there are several, or none."""
    values = np.unique(np.concatenate([line.values for line in series] or [np.array([])]))
    return float(values[0]) if values.size == 1 else None


def _means(steps: Sequence[int], values: np.ndarray, parts: Sequence[tuple[int, int]]) -> list[float | None]:
    places = np.asarray(steps)
    return [mean(values[(first <= places) & (places <= last)]) for first, last in parts]
