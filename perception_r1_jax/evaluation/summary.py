"""The numbers of an evaluation, and of two evaluations of the same problems beside each other."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from perception_r1_jax.evaluation.checker import ABSENT, MISREAD, RIGHT
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.evaluation.pairs import Pairs, pair
from perception_r1_jax.records import FINISH_LENGTH

FIELDS = ("accuracy", "perception", "probe")
"""What is right or wrong about each problem."""

CHANGES = {
    "newly_stated": (ABSENT, RIGHT),
    "newly_right": (MISREAD, RIGHT),
    "no_longer_stated": (RIGHT, ABSENT),
    "no_longer_right": (RIGHT, MISREAD),
}
"""How a needed fact is gained or lost: its state before and after."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """One evaluation in numbers; a rate without data is None.

    Attributes:
        problems: all that were asked.
        accuracy, perception, probe: share of right ones among the problems that have a verdict.
        precision: share of the facts stated in all responses that are true.
        cut: responses that reached the limit of tokens; they are graded as they stand.
        probe_cut: answers to probes likewise.
        failed: field -> problems that have no data there for a failure, and so are not in its rate. Problems without
            a response stand under "response".
        seconds: that it took.
    """

    problems: int
    accuracy: float | None
    perception: float | None
    probe: float | None
    precision: float | None
    cut: int
    probe_cut: int
    failed: Mapping[str, int]
    seconds: float


def summarise(items: Sequence[Item], seconds: float) -> Summary:
    """The numbers of one evaluation."""
    right, wrong = (_sum(items, field) for field in ("facts_right", "facts_wrong"))
    failed = collections.Counter(field for item in items for field in item.failures)
    return Summary(
        problems=len(items),
        **{field: _rate(items, field) for field in FIELDS},
        precision=right / (right + wrong) if right + wrong else None,
        cut=sum(item.finish_reason == FINISH_LENGTH for item in items),
        probe_cut=sum(item.probe_finish_reason == FINISH_LENGTH for item in items),
        failed=dict(failed),
        seconds=round(seconds, 1),
    )


def _sum(items: Sequence[Item], field: str) -> int:
    return sum(getattr(item, field) or 0 for item in items)


def _rate(items: Sequence[Item], field: str) -> float | None:
    values = [value for item in items if (value := getattr(item, field)) is not None]
    return sum(values) / len(values) if values else None


def pair_items(before: Sequence[Item], after: Sequence[Item], field: str) -> Pairs:
    """The verdicts of one field before and after. Raises `UserError` where the problems are not the same."""
    return pair(*({item.problem_id: getattr(item, field) for item in items} for items in (before, after)))


def fact_changes(before: Sequence[Item], after: Sequence[Item]) -> dict[str, int] | None:
    """How many needed facts of the same problems were gained and lost in which way: `CHANGES`, and `needed`, all.

    Problems without states on either side are left out; None where no problem has them.

    Raises:
        ValueError: a problem has other needed facts after than before.
    """
    states = list(fact_moves(before, after))
    counts = collections.Counter(states)
    return {"needed": len(states), **{name: counts[change] for name, change in CHANGES.items()}} if states else None


def fact_moves(before: Sequence[Item], after: Sequence[Item]) -> Iterator[tuple[str, str]]:
    """The states of each needed fact before and after; see `fact_changes`."""
    later = {item.problem_id: item.fact_states for item in after}
    for item in before:
        if item.fact_states is not None and later[item.problem_id] is not None:
            yield from zip(item.fact_states, later[item.problem_id], strict=True)
