"""What the small judge of the world should answer: for each annotation a note of what the response says, then verdicts.

A small model does not find out from verdicts alone what to compare with what: many steps long nothing is better than a
guess. In its notes it copies what it looks up, which is learned quickly, and compares what stands side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

from perception_r1_jax.data.geometry_world.checker import reflected
from perception_r1_jax.data.geometry_world.facts import Fact
from perception_r1_jax.data.geometry_world.language import Statement, read_statement, statements
from perception_r1_jax.judge.prompts import JudgeRequest
from perception_r1_jax.judge.template import answer_text

NOTHING, NOT = "no", "not"
SAME, OTHER = "=", "/"


def judge_answer(request: JudgeRequest) -> str:
    """Notes in the manner of a reasoning model, and the checker's verdicts in the judge's form.

    A note repeats an annotation and quotes the statement that is most like it. Then it goes through the letters and
    the number of the annotation: each has beside it the one in its place in the quotation, and whether the two are the
    same. The verdict follows.
    """
    verdicts = true_verdicts(request)
    said = list(statements(request.response))
    notes = (
        f"{place}. {_note(read_statement(annotation), said)} {verdict}"
        for place, (annotation, verdict) in enumerate(zip(request.annotations, verdicts), 1)
    )
    return "<think>\n" + "\n".join(notes) + "\n</think>\n" + answer_text(verdicts)


def true_verdicts(request: JudgeRequest) -> list[int]:
    """The checker's."""
    return [int(reflected(annotation, request.response)) for annotation in request.annotations]


def _note(asked: Statement, said: Sequence[Statement]) -> str:
    same_kind = [statement for statement in said if statement.fact.kind == asked.fact.kind]
    if not same_kind:
        return f"{asked.words}: {NOTHING}"
    nearest = max(same_kind, key=lambda statement: _likeness(asked.fact, statement))
    pairs = zip(_parts(asked.fact), _parts(nearest.fact))
    compared = "".join(_side_by_side(*pair) for pair in pairs)
    return f"{asked.words}: {nearest.words}. {compared}{f' {NOT}' if nearest.denied else ''}"


def _side_by_side(asked: str, found: str) -> str:
    between = "" if asked.isalpha() else " "  # two numbers would read as one
    return asked + between + found + (SAME if asked == found else OTHER)


def _parts(fact: Fact) -> tuple[str, ...]:
    """The letters of the names, and the number; facts of one kind have equally many."""
    letters = tuple("".join(fact.names))
    return letters if fact.value is None else (*letters, str(fact.value))


def _likeness(fact: Fact, statement: Statement) -> tuple[int, ...]:
    """Larger is more alike; names count before numbers, and of statements about the fact's subject a contradiction."""
    same_subject = statement.fact.subject == fact.subject
    letters, others = set("".join(fact.names)), set("".join(statement.fact.names))
    telling = statement.contradicts(fact) if same_subject else statement.fact.value == fact.value
    return same_subject, len(letters & others), telling
