"""Problems of the world: number `index` of a split, the same for the same seed, without end.

Train, validation and test are disjoint by construction: a problem's facts decide which of them it belongs to.
"""

from __future__ import annotations

import dataclasses
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from perception_r1_jax.data.geometry_world.draw import render
from perception_r1_jax.data.geometry_world.facts import Fact
from perception_r1_jax.data.geometry_world.families import FAMILIES
from perception_r1_jax.data.geometry_world.language import ask, say, say_freely
from perception_r1_jax.data.geometry_world.layout import Drawing, lay_out
from perception_r1_jax.data.geometry_world.puzzle import Puzzle
from perception_r1_jax.data.key_info import format_key_info
from perception_r1_jax.records import IMAGE_MARKER, Problem

SHARES = {"train": 8, "val": 1, "test": 1}
"""Of ten problems, how many are in each split."""

_OWNERS = [split for split, share in SHARES.items() for _ in range(share)]

SIZES = {"train": 2000, "val": 400, "test": 400}
"""How many problems a split has where nobody says otherwise."""

FAMILY_SHARES = {
    "unequal sides": 6,
    "parallelogram sides": 6,
    "crossing lines": 2,
    "parallelogram angles": 2,
}
"""How often a family comes for each time that one not named here does.

In most families the numbers give the answer in any order, so a policy that does not see which number belongs to what is
right all the same. In these it has to know: to sides first of all, and to which of two angles.
"""

ALIKE: Mapping[str, int] = {}
"""Shares under which all families are as frequent, for what is to be learned of each."""

IN_TEXT = 0.15
"""Share of problems whose question tells all that the solution needs: they can be solved without looking."""

WITH_CHOICES = 0.4
"""Share of problems with four answers to choose from: one in four guesses is right."""

TELLS_ALL = 0.33
"""Share of solutions that state all that the picture shows, not only what is needed."""

LOOK = "From left to right:"
"""How a response begins that goes over the picture before it thinks."""


@dataclasses.dataclass(frozen=True)
class WorldProblem:
    """A puzzle as it is put to somebody."""

    name: str
    family: str
    puzzle: Puzzle
    drawing: Drawing
    question: str
    solution: str
    probe: tuple[str, str]

    def row(self) -> dict[str, Any]:
        """The authors' columns, and what only the world knows: for its checker, and for whoever reads the data."""
        needed, facts = (tuple(map(say, group)) for group in (self.puzzle.needed, self.puzzle.figure.facts()))
        return {
            "problem": IMAGE_MARKER + self.question,
            "answer": str(self.puzzle.answer),
            "images": [render(self.drawing)],
            "visual_key_info": format_key_info(needed),
            "family": self.family,
            "solution": self.solution,
            "facts": list(facts),
            "needed": list(needed),
            "result": [say(self.puzzle.result)] if self.puzzle.result else [],
            "probe_question": self.probe[0],
            "probe_answer": self.probe[1],
        }

    def problem(self) -> Problem:
        """The problem as a data set holds it."""
        row = self.row()
        return Problem(self.name, row["problem"], tuple(row["images"]), row["answer"], tuple(row["needed"]), row)


def make_problem(
    index: int, split: str = "train", seed: int = 0, shares: Mapping[str, int] = FAMILY_SHARES
) -> WorldProblem:
    """Problem number `index` of a split; `shares` as in `FAMILY_SHARES`."""
    rng = random.Random(f"{seed}/{split}/{index}")
    family = rng.choice([family for family in FAMILIES for _ in range(shares.get(family, 1))])
    puzzle, drawing = draw_puzzle(family, split, rng)
    return WorldProblem(
        f"world-{seed}/{split}/{index}",
        family,
        puzzle,
        drawing,
        _question(puzzle, rng),
        respond(puzzle, tell(_told(puzzle, rng), rng), rng),
        ask(rng.choice(puzzle.needed), rng),
    )


def make_puzzle(family: str, split: str, rng: random.Random) -> Puzzle:
    """A puzzle of a split."""
    while True:
        puzzle = FAMILIES[family](rng)
        if owner(puzzle.needed) == split:
            return puzzle


def draw_puzzle(family: str, split: str, rng: random.Random) -> tuple[Puzzle, Drawing]:
    """A puzzle of a split with its picture's layout; those whose texts find no room on the picture are left out."""
    while True:
        puzzle = make_puzzle(family, split, rng)
        if drawing := lay_out(puzzle.figure, rng):
            return puzzle, drawing


def owner(needed: tuple[Fact, ...]) -> str:
    """The split that problems with these facts belong to."""
    return _OWNERS[zlib.crc32(" ".join(map(say, sorted(needed, key=repr))).encode()) % len(_OWNERS)]


def numbers_from_left_to_right(problem: WorldProblem) -> list[Fact]:
    """The facts that are numbers, as these stand in the picture."""
    figure = problem.puzzle.figure
    numbered = (fact for fact in figure.facts() if fact.value is not None)
    texts = problem.drawing.texts[len(figure.points) :]
    return [fact for _, fact in sorted(zip(texts, numbered, strict=True), key=lambda pair: pair[0][1][0])]


def survey(problem: WorldProblem, facts: Sequence[Fact]) -> list[str]:
    """The facts as sentences, always in the same words: the numbers from left to right, then what has none."""
    numbers = [fact for fact in numbers_from_left_to_right(problem) if fact in facts]
    return [say(fact, 1) for fact in (*numbers, *(fact for fact in facts if fact.value is None))]


def _question(puzzle: Puzzle, rng: random.Random) -> str:
    question = rng.choice(puzzle.questions)
    if rng.random() < IN_TEXT:
        question = " ".join([*(say(fact) for fact in puzzle.needed), puzzle.questions[0]])
    if rng.random() < WITH_CHOICES:
        question += f" Choices: {', '.join(map(str, _choices(puzzle.answer, rng)))}."
    return question


def _choices(answer: int, rng: random.Random) -> list[int]:
    """The answer among three numbers near it, in rising order."""
    near = [number for number in range(max(1, answer - 12), answer + 13) if number != answer]
    return sorted([answer, *rng.sample(near, 3)])


def _told(puzzle: Puzzle, rng: random.Random) -> tuple[Fact, ...]:
    return puzzle.figure.facts() if rng.random() < TELLS_ALL else puzzle.needed


def tell(facts: Sequence[Fact], rng: random.Random) -> list[str]:
    """The facts as sentences, in any order and wording."""
    return [say_freely(fact, rng) for fact in rng.sample(facts, len(facts))]


def respond(puzzle: Puzzle, sentences: Sequence[str], rng: random.Random) -> str:
    """A response that states what these sentences say, with the rule before or after them."""
    return _conclude(puzzle, [puzzle.reason, *sentences] if rng.random() < 0.5 else [*sentences, puzzle.reason])


def look_first(problem: WorldProblem, rng: random.Random) -> str:
    """A response that goes over the picture before it thinks."""
    puzzle = problem.puzzle
    return _conclude(puzzle, [LOOK, *survey(problem, _told(puzzle, rng)), puzzle.reason])


def _conclude(puzzle: Puzzle, thoughts: Sequence[str]) -> str:
    conclusion = f"So {' and '.join((*puzzle.steps, f'the answer is {puzzle.answer}'))}."
    thought = " ".join((*thoughts, conclusion))
    return f"<think>\n{thought}\n</think>\n<answer>\n\\boxed{{{puzzle.answer}}}\n</answer>"
