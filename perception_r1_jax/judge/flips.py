"""A judge made worse on purpose: a share of its verdicts turned round, to see how much noise the reward bears."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.processing.batching import prompt_hash


def flip_verdicts(
    judgements: Sequence[Sequence[Judgement]], problem_ids: Sequence[str], probability: float, *, seed: int, step: int
) -> list[list[Judgement]]:
    """Judgements [N][G] with each verdict v turned to 1 - v with this probability.

    Its probability, where it has one, turns with it. Whether a verdict turns depends on (seed, step, problem id,
    sample, number of the annotation) alone, so neither on what it says nor on what else is judged. Status and counts
    stay the judge's own: its failures are not of this making. Everything that is computed from verdicts (the reward,
    the samples file, agreement with a checker) sees them as they are used, turned.
    """
    return [
        [_flip(judgement, probability, (seed, step, prompt_hash(name), sample)) for sample, judgement in enumerate(row)]
        for name, row in zip(problem_ids, judgements)
    ]


def _flip(judgement: Judgement, probability: float, place: tuple[int, ...]) -> Judgement:
    if judgement.verdicts is None:
        return judgement
    turned = np.random.default_rng(place).random(len(judgement.verdicts)) < probability

    def turn(values):
        return values and tuple(1.0 - value if turns else value for value, turns in zip(values, turned))

    return dataclasses.replace(
        judgement, verdicts=turn(judgement.verdicts), probabilities=turn(judgement.probabilities)
    )
