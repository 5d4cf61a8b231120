"""A puzzle: a figure with something to find out about it, and how."""

from __future__ import annotations

import dataclasses
import random

from perception_r1_jax.data.geometry_world import facts
from perception_r1_jax.data.geometry_world.facts import Fact
from perception_r1_jax.data.geometry_world.figure import Figure

LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """What a family makes.

    Attributes:
        figure: the picture, without details that nobody needs.
        needed: the facts that the solution uses, all of them visible.
        questions: ways to ask, the first with the names of things, the others by what they look like.
        reason: the rule that applies, a sentence.
        steps: the calculation, "180 - 40 = 140" each.
        answer: the number asked for.
        result: the answer as a fact, where there is one; true of the figure, but not written in the picture.
    """

    figure: Figure
    needed: tuple[Fact, ...]
    questions: tuple[str, ...]
    reason: str
    steps: tuple[str, ...]
    answer: int
    result: Fact | None = None


def draw_letters(rng: random.Random, count: int) -> list[str]:
    """Names for points, all unlike. I and O look like numbers and are left out."""
    return rng.sample(LETTERS, count)


def puzzle_of_two_angles(
    figure: Figure, needed: tuple[Fact, ...], question: str, asked: str, degrees: int, equal: bool, reason: str
) -> Puzzle:
    """The angle `asked` for is as large as the one given (`degrees`), or makes 180 degrees with it."""
    answer = degrees if equal else 180 - degrees
    return Puzzle(
        figure,
        needed=needed,
        questions=(question,),
        reason=reason,
        steps=() if equal else (f"180 - {degrees} = {answer}",),
        answer=answer,
        result=facts.angle(asked, answer),
    )
