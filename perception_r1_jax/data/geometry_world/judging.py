"""What the small judge of the world should answer: a note of each statement in the response, then verdicts.

A small model does not find out from verdicts alone what to compare with what: many steps long nothing is better than a
guess. In its notes it copies what it looks up, which is learned quickly, and compares what stands side by side. It goes
through the response and not through the annotations: to see that something is said once is easier than that it is said
twice, and who states two numbers of one side has seen neither.
"""

from __future__ import annotations

from collections.abc import Sequence

from perception_r1_jax.data.geometry_world.checker import reflected
from perception_r1_jax.data.geometry_world.facts import Fact
from perception_r1_jax.data.geometry_world.language import Statement, read_fact, statements
from perception_r1_jax.judge.prompts import JudgeRequest
from perception_r1_jax.judge.template import answer_text

NOTHING, NOT = "no", "not"
SAME, OTHER = "=", "/"


def judge_answer(request: JudgeRequest) -> str:
    """Notes in the manner of a reasoning model, and the checker's verdicts in the judge's form.

    A note quotes a statement, and the annotation that is most like it up to its closing tag, which tells its number.
    Then it goes through the letters and the number of the statement: each has beside it the one in its place in the
    annotation, and whether the two are the same. Last comes what this says of the annotation: it is stated,
    contradicted, or neither.
    """
    facts = [read_fact(annotation) for annotation in request.annotations]
    said = sorted(statements(request.response), key=lambda statement: statement.start)
    notes = "".join(f"{_note(statement, request.annotations, facts)}\n" for statement in said)
    return f"<think>\n{notes}</think>\n{answer_text(true_verdicts(request))}"


def true_verdicts(request: JudgeRequest) -> list[int]:
    """The checker's."""
    return [int(reflected(annotation, request.response)) for annotation in request.annotations]


def _note(said: Statement, annotations: Sequence[str], facts: Sequence[Fact]) -> str:
    same_kind = [place for place, fact in enumerate(facts) if fact.kind == said.fact.kind]
    if not same_kind:
        return f"{said.words}: {NOTHING}"
    place = max(same_kind, key=lambda place: _likeness(said.fact, facts[place]))
    quoted, tag = f"{annotations[place]}</info{place + 1}>", f"<info{place + 1}>"
    compared = "".join(_side_by_side(*pair) for pair in zip(_parts(said.fact), _parts(facts[place])))
    denied = f" {NOT}" if said.denied else ""
    return f"{said.words}: {quoted} {compared}{denied} {tag}{_says(said, facts[place])}"


def _says(said: Statement, asked: Fact) -> str:
    if said.contradicts(asked):
        return OTHER
    return SAME if said.fact == asked and not said.denied else NOTHING


def _side_by_side(said: str, asked: str) -> str:
    between = "" if said.isalpha() else " "  # two numbers would read as one
    return said + between + asked + (SAME if said == asked else OTHER)


def _parts(fact: Fact) -> tuple[str, ...]:
    """The letters of the names, and the number; facts of one kind have equally many."""
    letters = tuple("".join(fact.names))
    return letters if fact.value is None else (*letters, str(fact.value))


def _likeness(one: Fact, other: Fact) -> tuple[int, ...]:
    """Larger is more alike; names count before numbers."""
    letters, others = set("".join(one.names)), set("".join(other.names))
    return one.subject == other.subject, len(letters & others), one.value == other.value
