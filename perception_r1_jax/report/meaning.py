"""What the numbers of a run mean, in plain sentences that say no more than the tests do."""

from __future__ import annotations

from collections.abc import Mapping

from perception_r1_jax.evaluation.pairs import Pairs
from perception_r1_jax.report.outcome import Outcome, Precision
from perception_r1_jax.report.wording import counted, interval, p_value, points

SIGNIFICANT = 0.05
"""A p-value below it is taken for a change."""

PERCEPTION = {
    1: "The policy's responses perceive more of the pictures.",
    0: "The policy's responses show no significant change in perception.",
    -1: "The policy's responses perceive less of the pictures.",
}
"""By direction: 1 up, -1 down, 0 no significant change; likewise below."""

PROBE = {
    1: "Asked for single facts, it reads more of them rightly.",
    0: "Asked for single facts, it shows no significant change.",
    -1: "Asked for single facts, it reads fewer of them rightly.",
}

GAIN = {
    1: "So it sees better, and does not only state more.",
    0: "So this run does not tell whether it sees better or only states more.",
    -1: "So the gain does not come from reading single facts better.",
    None: "Without a probe, whether it sees better or only states more is open.",
}
"""What the direction of the probe says of a gain in perception."""

PRECISION = {
    1: "Of the facts that it states, a larger share is true.",
    0: "The share of true facts among those it states shows no significant change.",
    -1: "Of the facts that it states, a smaller share is true.",
}

ACCURACY = {
    1: "It answers more problems right.",
    0: "Its accuracy shows no significant change.",
    -1: "It answers fewer problems right.",
}


def conclude(outcome: Outcome) -> str:
    """The run's result in a few sentences."""
    went = {measure: direction(change) for measure, change in outcome.changes.items()}
    return " ".join([
        *_tell(PERCEPTION, went.get("perception")),
        *_tell(PROBE, went.get("probe")),
        *([GAIN[went.get("probe")]] if went.get("perception") == 1 else []),
        *_tell(PRECISION, outcome.precision and beyond_zero(outcome.precision.interval)),
        *_tell(ACCURACY, went.get("accuracy")),
    ])  # fmt: skip


def _tell(sentences: Mapping[int, str], direction: int | None) -> list[str]:
    return [] if direction is None else [sentences[direction]]


def direction(change: Pairs) -> int:
    """1 or -1 for a significant rise or fall, 0 for neither."""
    if change.p >= SIGNIFICANT:
        return 0
    return 1 if change.gained > change.lost else -1


def beyond_zero(bounds: tuple[float, float]) -> int:
    """1 or -1 for an interval that is above or below 0 as a whole, 0 for one that holds it."""
    return (bounds[0] > 0) - (bounds[1] < 0)


def tell(change: Pairs | Precision) -> str:
    """The change of a measure with its interval."""
    return f"{points(change.difference)} points (95% interval {interval(change.interval)})"


def tell_test(change: Pairs) -> str:
    """McNemar's test in words."""
    verdict = "significant" if change.p < SIGNIFICANT else "not significant"
    gained = counted(change.gained, "problem")
    return f"{gained} gained, {change.lost:,} lost; p\u00a0=\u00a0{p_value(change.p)}, {verdict}"
