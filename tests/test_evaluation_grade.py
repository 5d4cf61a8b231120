"""From a reply to an item: what each field holds, and that a failure is a reason and no number."""

from __future__ import annotations

import pytest

from perception_r1_jax.evaluation.grade import grade_one
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.inference.replies import Reply
from perception_r1_jax.records import Problem
from perception_r1_jax.rewards.grading import Accuracy
from tests import stub_checker

PROBLEM = Problem("val/1", "?", (), "12", row={"column": 1})
RESPONSE = Reply("AB is 5. <answer>\\boxed{12}</answer>", "stop")  # 36 characters
RIGHT, PROBED = Accuracy(1.0, "ok"), Reply("It is 5.", "stop")


def test_every_field():
    assert len(RESPONSE.text) == 36
    assert grade_one(PROBLEM, RESPONSE, RIGHT, PROBED, stub_checker) == Item(
        problem_id="val/1",
        response=RESPONSE.text,
        finish_reason="stop",
        extracted="\\boxed{12}",
        accuracy=1.0,
        perception=1.0,
        facts_right=1,
        facts_wrong=0,
        fact_states=["right", "right"],
        probe=1.0,
        probe_response="It is 5.",
        probe_finish_reason="stop",
    )


def test_without_a_checker_there_is_accuracy_alone():
    item = grade_one(PROBLEM, RESPONSE, RIGHT, None, None)
    assert item == Item("val/1", RESPONSE.text, "stop", "\\boxed{12}", 1.0)
    assert not item.failures


def test_a_response_that_was_cut_is_graded_as_it_stands():
    item = grade_one(PROBLEM, Reply("AB is", "length"), Accuracy(0.0, "ok"), None, None)
    assert (item.finish_reason, item.accuracy, item.extracted) == ("length", 0.0, "AB is")


@pytest.mark.parametrize("status", ["timed_out", "worker_died", "unreadable_truth"])
def test_a_failed_comparison_is_no_zero(status):
    item = grade_one(PROBLEM, RESPONSE, Accuracy(None, status), PROBED, stub_checker)
    assert (item.accuracy, item.failures) == (None, {"accuracy": status})
    assert (item.perception, item.probe) == (1.0, 1.0)


def test_a_problem_that_could_not_be_asked_has_a_reason_and_nothing_else():
    dropped = Reply(None, None, "prompt above 8 tokens (it has 9)")
    item = grade_one(PROBLEM, dropped, None, dropped, stub_checker)
    assert item == Item("val/1", failures={"response": dropped.fault, "probe": dropped.fault})


def test_a_checker_that_raises_leaves_its_field_open(monkeypatch):
    monkeypatch.setattr(stub_checker, "probe_right", lambda row, response: response["x"])
    item = grade_one(PROBLEM, Reply("raise", "stop"), RIGHT, PROBED, stub_checker)
    assert (item.accuracy, item.perception, item.facts_right, item.fact_states, item.probe) == (1.0, *[None] * 4)
    assert item.probe_response == "It is 5."
    assert item.failures["perception"] == "KeyError: 'needed'"
    assert item.failures["probe"].startswith("TypeError: ")
