"""What a step of GRPO saw and made, by which two sides are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Made(NamedTuple):
    """Alike for two sides that did the same work, but for the rewards, since each draws responses of its own.

    Attributes:
        prompts: token ids of the prompts, sorted; pictures' tokens included.
        lengths: tokens of each response.
        rewards: of each response.
    """

    prompts: list[list[int]]
    lengths: list[int]
    rewards: list[float]

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], lengths: Sequence[int], rewards: Sequence[float]) -> Made:
        """The prompts may come in any order."""
        return cls(sorted(map(list, prompts)), list(lengths), list(rewards))
