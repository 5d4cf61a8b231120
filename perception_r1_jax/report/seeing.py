"""Seeing against stating: did the policy come to state more of the picture, or to read it more rightly?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from perception_r1_jax.evaluation.checker import ABSENT, MISREAD, RIGHT
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.evaluation.summary import CHANGES, fact_moves
from perception_r1_jax.report.before_after import BeforeAfter
from perception_r1_jax.report.workdir import MissingData

STATES = (RIGHT, MISREAD, ABSENT)

LEFT_OUT, WRONG, BOTH = "left out", "wrong", "both"
"""What a response lacks that does not perceive: needed facts are not stated, stated ones are not true, or both."""


@dataclasses.dataclass(frozen=True)
class Seeing:
    """What became of facts and problems.

    Attributes:
        moves: (state before, state after) -> number of needed facts.
        gained: what the responses lacked before whose perception was gained -> number of problems.
        lost: what the responses lack after whose perception was lost -> likewise.
    """

    moves: Mapping[tuple[str, str], int]
    gained: Mapping[str, int]
    lost: Mapping[str, int]

    @property
    def changes(self) -> dict[str, int]:
        """Facts gained and lost, by the names of `evaluation.summary.CHANGES`."""
        return {name: self.moves[move] for name, move in CHANGES.items()}

    @property
    def total(self) -> int:
        """All needed facts."""
        return sum(self.moves.values())

    def before(self, state: str) -> int:
        """Facts that were in a state before."""
        return sum(self.moves[state, after] for after in STATES)

    def after(self, state: str) -> int:
        """Facts that are in a state after."""
        return sum(self.moves[before, state] for before in STATES)


def follow(evaluations: BeforeAfter) -> Seeing:
    """Follows the needed facts, and the problems whose perception changed.

    Raises:
        MissingData: the evaluations have no states of facts, since there was no checker.
    """
    moves = Counter(fact_moves(evaluations.before, evaluations.after))
    if not moves:
        raise MissingData("The evaluations hold no states of facts: the run had no checker of its pictures.")
    changed = [
        (before, after) for before, after in evaluations.items if None not in (before.perception, after.perception)
    ]
    gained = [before for before, after in changed if after.perception > before.perception]
    lost = [after for before, after in changed if after.perception < before.perception]
    return Seeing(
        {(before, after): moves[before, after] for before in STATES for after in STATES},
        gained=_count_lacks(gained),
        lost=_count_lacks(lost),
    )


def _count_lacks(items: list[Item]) -> dict[str, int]:
    lacks = Counter(lack(item) for item in items)
    return {name: lacks[name] for name in (LEFT_OUT, WRONG, BOTH)}


def lack(item: Item) -> str:
    """What keeps a response from perceiving."""
    if ABSENT not in item.fact_states:
        return WRONG
    return BOTH if item.facts_wrong else LEFT_OUT
