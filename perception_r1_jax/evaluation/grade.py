"""From replies to items: answers compared with the truth, and what a checker reads in a response."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from perception_r1_jax.evaluation.checker import Checker, Row
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.evaluation.task import Evaluation
from perception_r1_jax.inference.replies import Reply
from perception_r1_jax.records import Problem
from perception_r1_jax.rewards.accuracy import Accuracy, AccuracyPool
from perception_r1_jax.rewards.grading import OK, answer_text

PERCEIVED = ("perception", "facts_right", "facts_wrong", "fact_states")
"""The fields of an item that a checker's `perceive` fills."""


def grade(
    evaluation: Evaluation, responses: Mapping[str, Reply], probes: Mapping[str, Reply], pool: AccuracyPool
) -> list[Item]:
    """The items of all problems, from the replies to each by its id."""
    answered = [problem for problem in evaluation.problems if responses[problem.problem_id].text is not None]
    compared = pool.score([(responses[problem.problem_id].text, problem.answer) for problem in answered])
    accuracies = {problem.problem_id: accuracy for problem, accuracy in zip(answered, compared)}
    return [
        grade_one(problem, responses[name], accuracies.get(name), probes.get(name), evaluation.checker)
        for problem, name in ((problem, problem.problem_id) for problem in evaluation.problems)
    ]


def grade_one(
    problem: Problem, response: Reply, accuracy: Accuracy | None, probe: Reply | None, checker: Checker | None
) -> Item:
    """One problem's item. Whatever could not be asked, compared or checked is a failure with its reason, never a 0."""
    failures: dict[str, str] = {}
    return Item(
        problem.problem_id,
        **_read_response(problem, response, accuracy, checker, failures),
        **(_read_probe(problem, probe, checker, failures) if probe and checker else {}),
        failures=failures,
    )


def grade_again(item: Item, row: Row, checker: Checker) -> Item:
    """The item as a checker reads its response now; answer and probe stay as they were graded."""
    if item.response is None:
        return item
    failures = {field: reason for field, reason in item.failures.items() if field != "perception"}
    read = _attempt("perception", failures, lambda: _perceive(checker, row, item.response))
    return dataclasses.replace(item, **dict.fromkeys(PERCEIVED) | read, failures=failures)


def _read_response(
    problem: Problem, response: Reply, accuracy: Accuracy | None, checker: Checker | None, failures: dict[str, str]
) -> dict[str, Any]:
    if response.text is None or accuracy is None:
        failures["response"] = response.fault
        return {}
    if accuracy.status != OK:
        failures["accuracy"] = accuracy.status
    read = {
        "response": response.text,
        "finish_reason": response.finish_reason,
        "extracted": answer_text(response.text),
        "accuracy": accuracy.value,
    }
    if checker is None:
        return read
    return read | _attempt("perception", failures, lambda: _perceive(checker, problem.row, response.text))


def _read_probe(problem: Problem, probe: Reply, checker: Checker, failures: dict[str, str]) -> dict[str, Any]:
    if probe.text is None:
        failures["probe"] = probe.fault
        return {}
    read = {"probe_response": probe.text, "probe_finish_reason": probe.finish_reason}
    return read | _attempt("probe", failures, lambda: {"probe": float(checker.probe_right(problem.row, probe.text))})


def _attempt(field: str, failures: dict[str, str], check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a checker says; nothing where it raises, which is a failure of the field."""
    try:
        return check()
    except Exception as error:
        failures[field] = f"{type(error).__name__}: {error}"
        return {}


def _perceive(checker: Checker, row: Row, response: str) -> dict[str, Any]:
    perception = checker.perceive(row, response)
    return {
        "perception": float(perception.perceived),
        "facts_right": perception.right,
        "facts_wrong": perception.wrong,
        "fact_states": list(perception.states),
    }
