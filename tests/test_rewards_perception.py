"""The visual reward of a judgement."""

from __future__ import annotations

import math

import pytest

from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.rewards.perception import visual_reward


@pytest.mark.parametrize(
    ("verdicts", "default", "paper"),
    [
        ((1.0, 0.0, 1.0, 1.0), 0.75, 3 / (4 + 1e-6)),
        ((0.0, 0.0), 0.0, 0.0),
        ((1.0,), 1.0, 1 / (1 + 1e-6)),
    ],
)
def test_share_of_the_annotations(verdicts, default, paper):
    judgement = Judgement(verdicts, len(verdicts), len(verdicts), "ok")
    assert visual_reward(judgement) == default
    assert visual_reward(judgement, "paper") == paper


def test_the_paper_divides_by_what_was_read():
    judgement = Judgement((1.0, 1.0), 4, 2, "ok")
    assert visual_reward(judgement, "paper") == pytest.approx(1.0, abs=1e-5)
    assert visual_reward(Judgement((), 4, 0, "ok"), "paper") == 0.0


def test_probabilities_count_where_they_are_asked_for():
    judgement = Judgement((1.0, 0.0, 1.0, 1.0), 4, 4, "ok", (0.75, 0.25, 0.5, 1.0))
    assert visual_reward(judgement) == 0.75
    assert visual_reward(judgement, mode="probability") == 0.625
    assert math.isnan(visual_reward(Judgement(None, 2, 0, "not_finite"), mode="probability"))
    with pytest.raises(ValueError, match="these verdicts have none; the judge must"):
        visual_reward(Judgement((1.0,), 1, 1, "ok"), mode="probability")


@pytest.mark.parametrize("status", ["none", "missing", "empty"])
@pytest.mark.parametrize("fidelity", ["default", "paper"])
def test_no_verdicts_is_no_number(status, fidelity):
    assert math.isnan(visual_reward(Judgement(None, 2, 0, status), fidelity))
