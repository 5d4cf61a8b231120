"""The visual reward: the share of a problem's annotations that a judge finds in the response."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perception_r1_jax.judge.verdicts import Judgement


VISUAL_MODES = ("hard", "probability")
"""What an annotation counts: the verdict, or the judge's probability of a 1 (only where it chooses between digits)."""


def visual_reward(judgement: Judgement, fidelity: str = "default", mode: str = "hard") -> float:
    """The sum of the verdicts, or of their probabilities, over m, the annotations asked about; in [0, 1].

    NaN without verdicts: after a failed judgement, and without annotations, where the term adds nothing to
    the total and the response is left out of the term's mean. With fidelity "paper" the divisor is the
    number of verdicts read, plus 1e-6, as in the authors' code: a missing verdict raises the reward.

    Raises:
        ValueError: mode "probability", and verdicts without probabilities.
    """
    if judgement.verdicts is None:
        return math.nan
    if fidelity == "paper":
        return sum(judgement.verdicts) / (len(judgement.verdicts) + 1e-6)
    values = judgement.probabilities if mode == "probability" else judgement.verdicts
    if values is None:
        raise ValueError("visual_mode = 'probability': these verdicts have none; the judge must choose between digits.")
    return sum(values) / judgement.expected
