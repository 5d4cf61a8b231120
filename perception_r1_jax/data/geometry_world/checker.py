"""The world's own checker: what a person would say who compares a response with the picture.

It knows the facts that the picture was drawn from. Nothing in GRPO sees it; the judge has learned what
`reflected` says, which compares texts alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from perception_r1_jax.data.geometry_world.facts import Fact, canonical
from perception_r1_jax.data.geometry_world.language import Statement, read_fact, statements
from perception_r1_jax.data.geometry_world.problems import LOOK
from perception_r1_jax.evaluation.checker import ABSENT, MISREAD, RIGHT


@dataclasses.dataclass(frozen=True)
class Perception:
    """How well a response sees.

    Attributes:
        perceived: every needed fact is stated, and nothing stated about the picture is wrong.
        right: stated facts that are true of the picture.
        wrong: stated facts that are not.
        states: of each needed fact in the order of `needed`: "right"; "misread", it is denied, another value is stated
            for the same thing, or its value (of a relation: the relation) for something of which that is not true;
            "absent", none of these.
    """

    perceived: bool
    right: int
    wrong: int
    states: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Traits:
    """What an ablation counts of a response beside what it perceives.

    Attributes:
        looks_first: the response goes over the picture before it thinks.
        wrong_kinds: kind of each stated fact that is not true of the picture, of `facts.KINDS`, sorted.
    """

    looks_first: bool
    wrong_kinds: tuple[str, ...]


def perceive(row: Mapping[str, Any], response: str) -> Perception:
    """Compares a response with the picture of a problem's row.

    A number that is concluded ("so ... is 70") and not written in the picture is reasoning, and not looked at; one
    that contradicts the picture is wrong wherever it stands.
    """
    right, wrong = _compare(row, response)
    states = tuple(_state(read_fact(sentence), right, wrong) for sentence in row["needed"])
    return Perception(not wrong and all(state == RIGHT for state in states), len(right), len(wrong), states)


def traits(row: Mapping[str, Any], response: str) -> Traits:
    """What an ablation counts of a response to the problem of a row."""
    _, wrong = _compare(row, response)
    kinds = tuple(sorted(statement.fact.kind for statement in wrong))
    return Traits(LOOK in response, kinds)


def _compare(row: Mapping[str, Any], response: str) -> tuple[set[Statement], set[Statement]]:
    """The statements that are true of a row's picture, and those that are not."""
    shown, results = ([read_fact(sentence) for sentence in row[name]] for name in ("facts", "result"))
    true = {*shown, *results}
    about = {fact.subject for fact in shown}
    stated = {
        statement for statement in statements(response) if not statement.concluded or statement.fact.subject in about
    }
    right = {statement for statement in stated if (statement.fact in true) != statement.denied}
    return right, stated - right


def reflected(annotation: str, response: str) -> bool:
    """Whether a response states an annotation, true or not, and nowhere contradicts it: what an ideal judge says.

    Who says that a side is 5 and that it is 6 has not seen that it is 5.
    """
    fact = read_fact(annotation)
    said = list(statements(response))
    stated = any(statement.fact == fact and not statement.denied for statement in said)
    return stated and not any(statement.contradicts(fact) for statement in said)


def probe(row: Mapping[str, Any]) -> tuple[str, str]:
    """A question about one fact of the picture, and its answer."""
    return row["probe_question"], row["probe_answer"]


def probe_right(row: Mapping[str, Any], response: str) -> bool:
    """Whether a response to the probe gives its answer, and nothing else."""
    words = re.findall(r"[A-Z]+\b|\d+", response)
    return len(words) == 1 and _same(words[0], row["probe_answer"])


def _same(word: str, answer: str) -> bool:
    return word == answer or (word.isalpha() and canonical(word) == canonical(answer))


def _state(fact: Fact, right: set[Statement], wrong: set[Statement]) -> str:
    if any(statement.contradicts(fact) for statement in wrong):
        return MISREAD
    if any(statement.fact == fact for statement in right):
        return RIGHT
    return MISREAD if any(_misplaces(statement, fact) for statement in wrong) else ABSENT


def _misplaces(statement: Statement, fact: Fact) -> bool:
    """Whether a wrong statement is the fact with another name: the number was seen, and given to something else.

    A relation has no number, so any other of its kind is it with other letters.
    """
    return not statement.denied and (statement.fact.kind, statement.fact.value) == (fact.kind, fact.value)
