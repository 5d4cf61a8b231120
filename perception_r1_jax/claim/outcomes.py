"""What became of each problem of an evaluation, in a few short texts, so that statistics can be done again later."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
    """

    accuracy: str
    perception: str
    probe: str
    facts_right: str
    facts_wrong: str
    fact_states: str

    @classmethod
    def of(cls, items: Sequence[Item]) -> Outcomes:
        """Those of an evaluation's items."""
        bits = {field: "".join(_bit(getattr(item, field)) for item in items) for field in FIELDS}
        counts = {
            name: " ".join(_count(getattr(item, name)) for item in items) for name in ("facts_right", "facts_wrong")
        }
        return cls(**bits, **counts, fact_states=" ".join(_states(item.fact_states) for item in items))

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

    def states(self) -> dict[str, float]:
        """Share of the needed facts of all problems in each state."""
        counts = {state: self.fact_states.count(state[0]) for state in (RIGHT, MISREAD, ABSENT)}
        return {state: count / max(sum(counts.values()), 1) for state, count in counts.items()}


def share(parts: tuple[np.ndarray, np.ndarray]) -> float:
    """The ratio of sums; NaN where no problem has a value."""
    above, below = (part.sum() for part in parts)
    return float(above / below) if below else float("nan")


def _bit(value: float | None) -> str:
    return NO_VALUE if value is None else str(int(value))


def _count(value: int | None) -> str:
    return NO_VALUE if value is None else str(value)


def _states(states: Sequence[str] | None) -> str:
    return NO_VALUE if states is None else "".join(state[0] for state in states)


def _numbers(texts: Sequence[str]) -> np.ndarray:
    return np.array([np.nan if text == NO_VALUE else float(text) for text in texts])
