"""Parallelograms: what opposite sides and neighbouring angles say."""

from __future__ import annotations

import math
import random

from perception_r1_jax.data.geometry_world import facts
from perception_r1_jax.data.geometry_world.figure import Figure, Point
from perception_r1_jax.data.geometry_world.puzzle import Puzzle, draw_letters, puzzle_of_two_angles


def parallelogram_sides(rng: random.Random) -> Puzzle:
    """Two neighbouring sides are given, the one opposite to one of them is asked for."""
    a, b, c, d = draw_letters(rng, 4)
    first, second = rng.sample(range(3, 30), 2)
    pairs = rng.sample(((a + b, d + c), (b + c, a + d)), 2)
    (given, asked), (other, _) = (rng.sample(pair, 2) for pair in pairs)
    return Puzzle(
        _figure((a, b, c, d), rng.randint(55, 85), lengths={given: first, other: second}),
        needed=(facts.length(given, first),),
        questions=(f"In parallelogram {a}{b}{c}{d}, find the length of {asked}.",),
        reason="Opposite sides of a parallelogram are equal.",
        steps=(),
        answer=first,
        result=facts.length(asked, first),
    )


def parallelogram_angles(rng: random.Random) -> Puzzle:
    """One angle is given, a neighbour or the opposite one is asked for."""
    a, b, c, d = draw_letters(rng, 4)
    degrees = rng.choice((rng.randint(50, 84), rng.randint(96, 130)))
    opposite = rng.random() < 0.5
    asked = b + c + d if opposite else a + b + c
    return puzzle_of_two_angles(
        _figure((a, b, c, d), degrees, angles={d + a + b: degrees}),
        needed=(facts.angle(d + a + b, degrees),),
        question=f"In parallelogram {a}{b}{c}{d}, find the measure of angle {asked}.",
        asked=asked,
        degrees=degrees,
        equal=opposite,
        reason="Opposite angles of a parallelogram are equal."
        if opposite
        else "Neighbouring angles of a parallelogram add up to 180 degrees.",
    )


def _figure(letters: tuple[str, ...], degrees: float, **marks) -> Figure:
    """The parallelogram, marked as one, with this angle at its first corner."""
    a, b, c, d = letters
    slant = 0.7 * math.cos(math.radians(degrees)), 0.7 * math.sin(math.radians(degrees))
    points: dict[str, Point] = {a: (0, 0), b: (1, 0), c: (1 + slant[0], slant[1]), d: slant}
    return Figure(points, (a + b, b + c, c + d, d + a), parallel=((a + b, d + c), (a + d, b + c)), **marks)
