"""The penalty for length, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.config import default_config
from perception_r1_jax.records import Problem
from perception_r1_jax.rewards.grading import OK, Accuracy
from perception_r1_jax.rewards.overlong import overlong_penalty
from perception_r1_jax.rewards.score import RewardSettings, score_responses


@pytest.mark.parametrize(
    ("tokens", "penalty"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0)]
)
def test_it_falls_from_0_to_minus_1_over_the_last_tokens_of_the_limit(tokens, penalty):
    assert overlong_penalty(tokens, limit=100, margin=20) == pytest.approx(penalty)


class Grader:
    """Stands for the pool of workers: every answer is right."""

    def score(self, items):
        return [Accuracy(1.0, OK)] * len(items)


def test_it_is_a_term_of_the_reward_where_the_config_says_so():
    config = default_config()
    assert "overlong" not in RewardSettings.from_config(config).weights
    config.reward.overlong_tokens, config.reward.overlong_weight = 2048, 0.5
    settings, problem = RewardSettings.from_config(config), Problem("p", "", (), "5")
    texts, lengths = [["5", "5", "5"]], np.array([[100, 3072, 4096]])
    scores = score_responses([problem], texts, None, Grader(), settings, lengths=lengths)
    np.testing.assert_allclose(scores.terms["overlong"], [[0, -0.5, -1]])
    np.testing.assert_allclose(scores.total, [[0.9, 0.65, 0.4]], rtol=1e-6)
