"""A judge that fails too often ends the run; one that fails now and then does not."""

from __future__ import annotations

import pytest

from perception_r1_jax.judge.failure_window import FailureWindow, JudgeFails
from perception_r1_jax.judge.verdicts import Judgement


def judgements(*statuses: str) -> list[Judgement]:
    return [Judgement(None, 1, 0, status) for status in statuses]


def test_the_rate_is_of_the_last_judgements_once_there_are_enough():
    window = FailureWindow(4, 0.5)
    window.add(judgements("timeout", "timeout", "timeout"))  # too few to say
    with pytest.raises(JudgeFails):
        window.add(judgements("ok"))
    window = FailureWindow(4, 0.5)
    window.add(judgements("timeout", "timeout", "ok", "ok"))  # just allowed
    window.add(judgements("ok", "ok", "timeout", "timeout"))
    window.add(judgements("ok"))
    with pytest.raises(JudgeFails):
        window.add(judgements("empty"))


def test_what_was_not_asked_is_outside_of_the_window():
    window = FailureWindow(2, 0.0)
    window.add(judgements("timeout", "none", "none", "none"))
    with pytest.raises(JudgeFails, match="1 of the last 2"):
        window.add(judgements("none", "ok"))


def test_the_message_has_the_reasons_and_what_to_do():
    with pytest.raises(JudgeFails) as failed:
        FailureWindow(6, 0.25).add(judgements("ok", "http_500", "http_500", "timeout", "ok", "none", "ok"))
    assert "3 of the last 6 judgements have failed (http_500 2, timeout 1)" in str(failed.value)
    assert "the share 0.25 that config.judge.max_failure_rate allows" in str(failed.value)


def test_a_rate_of_one_allows_all():
    FailureWindow(2, 1.0).add(judgements("timeout", "timeout", "timeout"))
