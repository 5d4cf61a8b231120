"""The rewards that need no judge: format, accuracy and repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from perception_r1_jax.records import Problem
from perception_r1_jax.rewards.accuracy import Accuracy, AccuracyPool
from perception_r1_jax.rewards.format import format_reward
from perception_r1_jax.rewards.repetition import repetition_penalty

if TYPE_CHECKING:
    from perception_r1_jax.rewards.score import RewardSettings


class CheapRewards(NamedTuple):
    """Of the G responses to a problem, each [G]."""

    format: list[float]
    accuracy: list[Accuracy]
    repetition: list[float]


def cheap_rewards(
    problems: Sequence[Problem], texts: Sequence[Sequence[str]], pool: AccuracyPool, settings: RewardSettings
) -> list[CheapRewards]:
    """Those of each problem; all answers are graded together. Args as of `score_responses`."""
    items = [(text, problem.answer) for problem, row in zip(problems, texts) for text in row]
    graded = iter(pool.score(items))
    size, most = settings.ngram_size, settings.repetition_max_penalty
    return [
        CheapRewards(
            format=[format_reward(text) for text in row],
            accuracy=[next(graded) for _ in row],
            repetition=[repetition_penalty(text, size, most) for text in row],
        )
        for row in texts
    ]
