"""A run ends when its judge fails too often: what is left of it would learn from too little, or from nothing."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.verdicts import NONE, OK, Judgement


class JudgeFails(UserError):
    """Of the last judgements more have failed than the config allows."""


class FailureWindow:
    """The last judgements that were asked for, and how many of them may fail.

    Args:
        size: judgements in the window. Nothing is said before it is full.
        max_rate: the share that may fail; 1 allows all.
    """

    def __init__(self, size: int, max_rate: float):
        self._max_rate = max_rate
        self._statuses: deque[str] = deque(maxlen=size)

    def add(self, judgements: Iterable[Judgement]) -> None:
        """Takes in judgements in their order.

        Raises:
            JudgeFails: the window is full, and more than the allowed share has failed; names the reasons.
        """
        self._statuses.extend(judgement.status for judgement in judgements if judgement.status != NONE)
        size = len(self._statuses)
        reasons = Counter(status for status in self._statuses if status != OK)
        if size < self._statuses.maxlen or reasons.total() <= self._max_rate * size:
            return
        named = ", ".join(f"{status} {count}" for status, count in reasons.most_common())
        raise JudgeFails(
            f"{reasons.total()} of the last {size} judgements have failed ({named}), more than the share "
            f"{self._max_rate} that config.judge.max_failure_rate allows. Mend the judge (docs/judge.md says what each "
            "reason means) and give the same command again, or set the rate higher."
        )
