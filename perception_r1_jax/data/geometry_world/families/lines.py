"""Lines: parts of a segment, and the angles where two lines cross or meet parallels."""

from __future__ import annotations

import itertools
import math
import random

from perception_r1_jax.data.geometry_world import facts
from perception_r1_jax.data.geometry_world.figure import Figure
from perception_r1_jax.data.geometry_world.puzzle import Puzzle, draw_letters, puzzle_of_two_angles


def parts_of_segment(rng: random.Random) -> Puzzle:
    """The parts of a segment are given and the whole is asked for."""
    letters = draw_letters(rng, rng.choice((3, 4)))
    names = [a + b for a, b in itertools.pairwise(letters)]
    values = [rng.randint(2, 39) for _ in names]
    ends = [0.0]
    for value in values:
        ends.append(ends[-1] + 0.3 + value / sum(values))
    whole = letters[0] + letters[-1]
    sums = [sum(values[: k + 1]) for k in range(len(values))]
    return Puzzle(
        Figure({letter: (end, 0.0) for letter, end in zip(letters, ends)}, (whole,), lengths=dict(zip(names, values))),
        needed=tuple(facts.length(name, value) for name, value in zip(names, values)),
        questions=(f"Find the length of {whole}.", "Find the length of the whole segment."),
        reason="The parts of a segment add up to the whole.",
        steps=tuple(f"{before} + {value} = {after}" for before, value, after in zip(sums, values[1:], sums[1:])),
        answer=sums[-1],
        result=facts.length(whole, sums[-1]),
    )


def crossing_lines(rng: random.Random) -> Puzzle:
    """Two lines cross: one angle is given, its neighbour or the opposite one is asked for."""
    a, b, c, d, e = draw_letters(rng, 5)
    degrees = rng.choice((rng.randint(40, 84), rng.randint(96, 140)))
    x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = {a: (-1.0, 0.0), b: (1.0, 0.0), c: (-x, -y), d: (x, y), e: (0.0, 0.0)}
    opposite = rng.random() < 0.4
    asked = b + e + d if opposite else c + e + b
    return puzzle_of_two_angles(
        Figure(points, (a + b, c + d), angles={a + e + c: degrees}),
        needed=(facts.angle(a + e + c, degrees),),
        question=f"Find the measure of angle {asked}.",
        asked=asked,
        degrees=degrees,
        equal=opposite,
        reason="Opposite angles are equal." if opposite else "Neighbouring angles add up to 180 degrees.",
    )


def between_parallels(rng: random.Random) -> Puzzle:
    """A line joins two parallels that leave it to opposite sides, or to one: its angle with one of them is given."""
    a, b, c, d = draw_letters(rng, 4)
    degrees = rng.choice((rng.randint(50, 84), rng.randint(96, 130)))
    opposite = rng.random() < 0.5
    asked = b + c + d
    x, y = (-0.9 * math.cos(math.radians(degrees)), -0.9 * math.sin(math.radians(degrees)))
    points = {a: (-1.0, 0.0), b: (0.0, 0.0), c: (x, y), d: (x + (1.0 if opposite else -1.0), y)}
    return puzzle_of_two_angles(
        Figure(points, (a + b, b + c, c + d), angles={a + b + c: degrees}, parallel=((a + b, c + d),)),
        needed=(facts.parallel(a + b, c + d), facts.angle(a + b + c, degrees)),
        question=f"Find the measure of angle {asked}.",
        asked=asked,
        degrees=degrees,
        equal=opposite,
        reason="Alternate angles between parallels are equal."
        if opposite
        else "Angles on one side between parallels add up to 180 degrees.",
    )
