"""Cards: which samples are chosen, and what is said of each annotation."""

from __future__ import annotations

import types

import pytest

from perception_r1_jax.records import Problem
from perception_r1_jax.report.cards import judge_marks, make_task, training_cards
from perception_r1_jax.report.workdir import MissingData, Problems

CHECKER = types.SimpleNamespace(reflected=lambda annotation, response: annotation in response)
PROBLEMS = Problems({"1": Problem("1", "<image>How long?", (), "5", ("a", "b"))})


def line(step: int, problem: str, sample: int, total: float | None, advantage: float) -> dict:
    fields = {"step": step, "problem_id": problem, "sample": sample, "response": f"{step}{problem}{sample}"}
    return {**fields, "total": total, "advantage": advantage}


def group(step: int, problem: str, *totals: float | None) -> list[dict]:
    """A group's lines; advantages are 0 where all totals are equal."""
    return [line(step, problem, k, total, float(len(set(totals)) > 1)) for k, total in enumerate(totals)]


def test_best_and_worst_of_the_first_group_with_a_signal():
    lines = [
        *group(1, "flat", 1.0, 1.0),
        *group(1, "x", None, 0.5, 1.5, 0.1),
        *group(1, "y", 0.0, 2.0),
        *group(2, "x", 0.0, 1.0),
        *group(3, "flat", 0.7, 0.7),
        *group(9, "y", None, None),
    ]
    cards = training_cards(lines, PROBLEMS, None)
    chosen = [[answered.source["response"] for answered in card.responses] for card in cards]
    assert chosen == [["1x2", "1x3"], ["3flat0", "3flat1"], ["9y0", "9y1"]]
    assert cards[0].title == "x, step 1"


def test_no_samples():
    with pytest.raises(MissingData):
        training_cards([], PROBLEMS, None)


def test_a_verdict_is_shown_beside_the_checker_where_they_differ():
    task = make_task("1", PROBLEMS)
    source = {"response": "a", "verdicts": [1.0, 1.0]}
    assert [mark.word for mark in judge_marks(source, task, None)] == ["yes", "yes"]
    assert [mark.word for mark in judge_marks(source, task, CHECKER)] == ["yes", "yes, checker:\u00a0no"]
    assert [mark.word for mark in judge_marks(source | {"verdicts": [0.0, 0.0]}, task, CHECKER)] == [
        "no, checker:\u00a0yes",
        "no",
    ]
    assert judge_marks({"response": "a", "verdicts": None}, task, CHECKER) == []


def test_a_problem_that_is_not_there_says_so():
    assert make_task("2", PROBLEMS).missing == "the data hold no such problem"
    assert make_task("2", Problems({}, "No data at x")).missing == "No data at x"
    assert make_task("1", PROBLEMS).question == "How long?"
