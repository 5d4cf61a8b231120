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
from perception_r1_jax.evaluation.checker import ABSENT, MISREAD, RIGHT


@dataclasses.dataclass(frozen=True)
class Perception:
    """How well a response sees.

    Attributes:
        perceived: every needed fact is stated, and nothing stated about the picture is wrong.
        right: stated facts that are true of the picture.
        wrong: stated facts that are not.
        states: of each needed fact in the order of `needed`: "right"; "misread", another value is stated for the
            same thing, or the fact is denied; "absent".
    """

    perceived: bool
    right: int
    wrong: int
    states: tuple[str, ...]


def perceive(row: Mapping[str, Any], response: str) -> Perception:
    """Compares a response with the picture of a problem's row.

    A number that is concluded ("so ... is 70") and not written in the picture is reasoning, and not looked at; one
    that contradicts the picture is wrong wherever it stands.
    """
    shown, needed, results = (list(map(read_fact, row[name])) for name in ("facts", "needed", "result"))
    true = {*shown, *results}
    about = {fact.subject for fact in shown}
    stated = {
        statement for statement in statements(response) if not statement.concluded or statement.fact.subject in about
    }
    right = {statement for statement in stated if (statement.fact in true) != statement.denied}
    wrong = stated - right
    states = tuple(_state(fact, right, wrong) for fact in needed)
    return Perception(not wrong and all(state == RIGHT for state in states), len(right), len(wrong), states)


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
    return RIGHT if any(statement.fact == fact for statement in right) else ABSENT
