"""The judge against the world's checker: the same annotations in the same responses, over the run.

A policy that learns to please the judge instead of showing what it sees parts the two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from perception_r1_jax.report.series import tenths
from perception_r1_jax.report.workdir import JsonLines, MissingData, Problems

THRESHOLD = 0.9
"""A correlation below it is where judge and checker part."""

EXAMPLES = 2
"""Responses shown for each tenth where they part."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """One response's annotations, as the judge and as the checker see them (both [M])."""

    line: Mapping[str, Any]
    annotations: tuple[str, ...]
    judge: tuple[bool, ...]
    checker: tuple[bool, ...]

    @property
    def shares(self) -> tuple[float, float]:
        """The share of reflected annotations by judge and by checker."""
        return float(np.mean(self.judge)), float(np.mean(self.checker))

    @property
    def gap(self) -> float:
        """How far the two shares are apart."""
        judge, checker = self.shares
        return abs(judge - checker)


@dataclasses.dataclass(frozen=True)
class Part:
    """A tenth of the run: its first and last step, and the responses that were compared."""

    first: int
    last: int
    items: Sequence[Compared]

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """float64 [responses, 2]: by judge and by checker."""
        return np.array([item.shares for item in self.items])

    @property
    def means(self) -> list[float]:
        """The mean share by judge and by checker."""
        return self.shares.mean(0).tolist()

    @property
    def pearson(self) -> float | None:
        """Correlation of the two shares over responses; None where one of them is the same for all."""
        return correlate(*self.shares.T)

    @property
    def parted(self) -> bool:
        """True where the correlation is below the threshold."""
        return self.pearson is not None and self.pearson < THRESHOLD

    @functools.cached_property
    def verdicts(self) -> Counter[tuple[bool, bool]]:
        """(judge's, checker's) -> number of annotations with these verdicts."""
        return Counter(pair for item in self.items for pair in zip(item.judge, item.checker))

    @property
    def alike(self) -> float:
        """Share of the judge's verdicts that are the checker's."""
        return (self.verdicts[True, True] + self.verdicts[False, False]) / self.verdicts.total()

    @property
    def examples(self) -> Sequence[Compared]:
        """The responses with the widest gaps, one of a problem."""
        widest: dict[str, Compared] = {}
        for item in sorted(self.items, key=lambda item: -item.gap):
            widest.setdefault(item.line["problem_id"], item)
        return list(widest.values())[:EXAMPLES]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The tenths of a run, and why responses were left out: reason -> number."""

    parts: Sequence[Part]
    left_out: Mapping[str, int]


def compare_judge(samples: JsonLines, problems: Problems, checker: ModuleType) -> Agreement:
    """Asks the checker about every response that the judge judged.

    Raises:
        MissingData: no response has both; the message says why.
    """
    if problems.missing:
        raise MissingData(f"The problems cannot be read: {problems.missing}")
    compared, left_out = [], Counter()
    for line in samples:
        reason = _not_comparable(line, problems)
        if reason:
            left_out[reason] += 1
        else:
            compared.append(_compare(line, problems.by_id[line["problem_id"]].annotations, checker))
    if not compared:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise MissingData(f"No response of samples.jsonl has verdicts to compare ({reasons or 'it has no lines'}).")
    steps = [item.line["step"] for item in compared]
    parts = [
        Part(first, last, [item for item in compared if first <= item.line["step"] <= last])
        for first, last in tenths(steps)
    ]
    return Agreement(parts, dict(sorted(left_out.items())))


def _not_comparable(line: Mapping[str, Any], problems: Problems) -> str:
    problem, verdicts = problems.by_id.get(line["problem_id"]), line.get("verdicts")
    if verdicts is None:
        return f"no judgement ({line.get('judge_status')})"
    if problem is None:
        return "unknown problem"
    return "" if len(verdicts) == len(problem.annotations) else "other annotations than the problem's"


def _compare(line: Mapping[str, Any], annotations: tuple[str, ...], checker: ModuleType) -> Compared:
    reflected = tuple(checker.reflected(annotation, line["response"]) for annotation in annotations)
    return Compared(line, annotations, tuple(verdict > 0.5 for verdict in line["verdicts"]), reflected)


def correlate(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's correlation; None where it is not defined, since x or y is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else None
