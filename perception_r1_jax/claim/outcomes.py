"""What became of each problem of an evaluation, in a few short texts, so that statistics can be done again later."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from perception_r1_jax.evaluation.checker import ABSENT, MISREAD, RIGHT
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.evaluation.summary import FIELDS

NO_VALUE = "-"


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """An evaluation's outcomes, problems in the order of its file; "-" stands for a problem without a value.

    Attributes:
        accuracy, perception, probe: a character per problem, "1" or "0".
        facts_right, facts_wrong: numbers of facts that a response states rightly and wrongly, with spaces between.
        fact_states: a letter for each needed fact (right, misread, absent), with spaces between problems.
        wrong_kinds: a letter for each wrong fact, the first of its kind, likewise.
        looks_first: as `accuracy`.
    """

    accuracy: str
    perception: str
    probe: str
    facts_right: str
    facts_wrong: str
    fact_states: str
    wrong_kinds: str
    looks_first: str

    @classmethod
    def of(cls, items: Sequence[Item], traits: Sequence[Any]) -> Outcomes:
        """Those of an evaluation's items; `traits` as its checker gives them, None without a response."""
        bits = {field: "".join(_bit(getattr(item, field)) for item in items) for field in FIELDS}
        counts = {
            name: " ".join(_count(getattr(item, name)) for item in items) for name in ("facts_right", "facts_wrong")
        }
        return cls(
            **bits,
            **counts,
            fact_states=" ".join(_initials(item.fact_states) for item in items),
            wrong_kinds=" ".join(_initials(found and found.wrong_kinds) for found in traits),
            looks_first="".join(_bit(found and found.looks_first) for found in traits),
        )

    def parts(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """One of `compare.RATES` as a ratio of sums over problems: float64 [problems] twice.

        The share of right problems has 1 or 0 over 1; precision has true facts over stated facts. Both parts are 0 for
        a problem without a value.
        """
        if measure == "precision":
            right, wrong = _numbers(self.facts_right.split(" ")), _numbers(self.facts_wrong.split(" "))
            return np.nan_to_num(right), np.nan_to_num(right + wrong)
        right = _numbers(getattr(self, measure))
        return np.nan_to_num(right), (~np.isnan(right)).astype(np.float64)

    @property
    def needed(self) -> int:
        """Number of facts that all solutions need."""
        return sum(self.fact_states.count(state[0]) for state in (RIGHT, MISREAD, ABSENT))

    @property
    def stated(self) -> int:
        """Number of facts that all responses state."""
        return int(self.parts("precision")[1].sum())

    def states(self) -> dict[str, float]:
        """Share of the needed facts of all problems in each state."""
        counts = {state: self.fact_states.count(state[0]) for state in (RIGHT, MISREAD, ABSENT)}
        return {state: count / max(self.needed, 1) for state, count in counts.items()}


def share(parts: tuple[np.ndarray, np.ndarray]) -> float:
    """The ratio of sums; NaN where no problem has a value."""
    above, below = (part.sum() for part in parts)
    return float(above / below) if below else float("nan")


def _bit(value: float | None) -> str:
    return NO_VALUE if value is None else str(int(value))


def _count(value: int | None) -> str:
    return NO_VALUE if value is None else str(value)


def _initials(words: Sequence[str] | None) -> str:
    return NO_VALUE if words is None else "".join(word[0] for word in words)


def _numbers(texts: Sequence[str]) -> np.ndarray:
    return np.array([np.nan if text == NO_VALUE else float(text) for text in texts])
