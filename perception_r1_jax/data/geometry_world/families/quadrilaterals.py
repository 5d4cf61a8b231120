"""Parallelograms: what opposite sides and neighbouring angles say."""

from __future__ import annotations

import math
import random

from perception_r1_jax.data.geometry_world import facts
from perception_r1_jax.data.geometry_world.figure import Figure, Point
from perception_r1_jax.data.geometry_world.puzzle import Puzzle, draw_letters


def parallelogram_sides(rng: random.Random) -> Puzzle:
    """Two sides are given, the perimeter is asked for."""
    a, b, c, d = draw_letters(rng, 4)
    first, second = rng.randint(3, 29), rng.randint(3, 29)
    given = {rng.choice((a + b, d + c)): first, rng.choice((b + c, a + d)): second}
    return Puzzle(
        _figure((a, b, c, d), rng.randint(55, 85), lengths=given),
        needed=(
            facts.parallel(a + b, d + c),
            facts.parallel(a + d, b + c),
            *(facts.length(name, value) for name, value in given.items()),
        ),
        questions=(f"Find the perimeter of {a}{b}{c}{d}.", "Find the perimeter of the parallelogram."),
        reason="Opposite sides of a parallelogram are equal.",
        steps=(f"{first} + {second} = {first + second}", f"2 * {first + second} = {2 * (first + second)}"),
        answer=2 * (first + second),
    )


def parallelogram_angles(rng: random.Random) -> Puzzle:
    """One angle is given, a neighbour or the opposite one is asked for."""
    a, b, c, d = draw_letters(rng, 4)
    degrees = rng.choice((rng.randint(50, 84), rng.randint(96, 130)))
    opposite = rng.random() < 0.3
    asked = b + c + d if opposite else a + b + c
    answer = degrees if opposite else 180 - degrees
    return Puzzle(
        _figure((a, b, c, d), degrees, angles={d + a + b: degrees}),
        needed=(facts.parallel(a + b, d + c), facts.parallel(a + d, b + c), facts.angle(d + a + b, degrees)),
        questions=(f"Find the measure of angle {asked}.",),
        reason=f"{'Opposite' if opposite else 'Neighbouring'} angles of a parallelogram "
        + ("are equal." if opposite else "add up to 180 degrees."),
        steps=() if opposite else (f"180 - {degrees} = {answer}",),
        answer=answer,
        result=facts.angle(asked, answer),
    )


def _figure(letters: tuple[str, ...], degrees: float, **marks) -> Figure:
    """The parallelogram, marked as one, with this angle at its first corner."""
    a, b, c, d = letters
    slant = 0.7 * math.cos(math.radians(degrees)), 0.7 * math.sin(math.radians(degrees))
    points: dict[str, Point] = {a: (0, 0), b: (1, 0), c: (1 + slant[0], slant[1]), d: slant}
    return Figure(points, (a + b, b + c, c + d, d + a), parallel=((a + b, d + c), (a + d, b + c)), **marks)
