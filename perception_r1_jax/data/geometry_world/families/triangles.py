"""Triangles: angle sums, isosceles, right and similar triangles, unequal sides."""

from __future__ import annotations

import math
import random

from perception_r1_jax.data.geometry_world import facts
from perception_r1_jax.data.geometry_world.figure import Figure, Point, between
from perception_r1_jax.data.geometry_world.puzzle import Puzzle, draw_letters

TRIPLES = ((3, 4, 5), (6, 8, 10), (5, 12, 13), (9, 12, 15), (8, 15, 17), (12, 16, 20), (15, 20, 25), (20, 21, 29))
"""Sides of right triangles, the longest last."""


def angle_sum(rng: random.Random) -> Puzzle:
    """Two angles are given, the third is asked for."""
    a, b, c = draw_letters(rng, 3)
    first, second = rng.randint(30, 95), rng.randint(25, 60)
    third = 180 - first - second
    points = _corners(a, b, c, first, second)
    side = rng.choice((a + b, b + c, c + a))
    return Puzzle(
        Figure(
            points,
            (a + b, b + c, c + a),
            lengths=_sometimes(rng, side),
            angles={b + a + c: first, a + b + c: second},
        ),
        needed=(facts.angle(b + a + c, first), facts.angle(a + b + c, second)),
        questions=(f"Find the measure of angle {a}{c}{b}.", "Find the missing angle of the triangle."),
        reason="The angles of a triangle add up to 180 degrees.",
        steps=(f"180 - {first} = {180 - first}", f"{180 - first} - {second} = {third}"),
        answer=third,
        result=facts.angle(a + c + b, third),
    )


def isosceles(rng: random.Random) -> Puzzle:
    """Two equal sides; from the angle between them to one of the others, or back."""
    a, b, c = draw_letters(rng, 3)
    base = rng.randint(32, 74)
    apex = 180 - 2 * base
    from_apex = rng.random() < 0.5
    given, asked = (b + a + c, a + b + c) if from_apex else (a + b + c, b + a + c)
    values = {b + a + c: apex, a + b + c: base}
    forwards = (f"180 - {apex} = {180 - apex}", f"{180 - apex} / 2 = {base}")
    backwards = (f"2 * {base} = {2 * base}", f"180 - {2 * base} = {apex}")
    return Puzzle(
        Figure(
            _corners(b, c, a, base, base),
            (a + b, b + c, c + a),
            lengths=_sometimes(rng, b + c),
            angles={given: values[given]},
            equal=((a + b, a + c),),
        ),
        needed=(facts.equal(a + b, a + c), facts.angle(given, values[given])),
        questions=(f"Find the measure of angle {asked}.",),
        reason="The angles at the base of an isosceles triangle are equal.",
        steps=forwards if from_apex else backwards,
        answer=values[asked],
        result=facts.angle(asked, values[asked]),
    )


def right_triangle(rng: random.Random) -> Puzzle:
    """Two sides of a right triangle, the third is asked for."""
    a, b, c = draw_letters(rng, 3)
    legs = list(rng.choice(TRIPLES))
    longest = legs.pop()
    rng.shuffle(legs)
    sides = {c + a: legs[0], c + b: legs[1], a + b: longest}
    asked = rng.choice(list(sides))
    given = {name: value for name, value in sides.items() if name != asked}
    small, large = sorted(given.values())
    sign = "+" if asked == a + b else "-"
    square = sides[asked] ** 2
    names = (f"Find the length of {asked}.", "Find the missing side of the triangle.")
    return Puzzle(
        Figure(
            {c: (0, 0), a: (legs[0], 0), b: (0, legs[1])}, (a + b, b + c, c + a), lengths=given, rights=(a + c + b,)
        ),
        needed=(facts.right(a + c + b), *(facts.length(name, value) for name, value in given.items())),
        questions=names,
        reason="The squares of the legs add up to the square of the hypotenuse.",
        steps=(
            f"{large} * {large} = {large**2}",
            f"{small} * {small} = {small**2}",
            f"{large**2} {sign} {small**2} = {square}",
        ),
        answer=sides[asked],
        result=facts.length(asked, sides[asked]),
    )


def similar_triangles(rng: random.Random) -> Puzzle:
    """A line parallel to one side cuts the others in the same ratio."""
    a, b, c, d, e = draw_letters(rng, 5)
    ratio, upper, other = rng.randint(2, 4), rng.randint(2, 9), rng.randint(2, 9)
    corners = _corners(b, c, a, rng.randint(50, 70), rng.randint(50, 70))
    points = corners | {d: between(corners[a], corners[b], 0.48), e: between(corners[a], corners[c], 0.48)}
    given = {a + d: upper, d + b: ratio * upper, a + e: other}
    return Puzzle(
        Figure(points, (a + b, b + c, c + a, d + e), lengths=given, parallel=((d + e, b + c),)),
        needed=(facts.parallel(d + e, b + c), *(facts.length(name, value) for name, value in given.items())),
        questions=(f"Find the length of {e}{c}.",),
        reason="A parallel to one side cuts the other sides in the same ratio.",
        steps=(f"{ratio * upper} / {upper} = {ratio}", f"{ratio} * {other} = {ratio * other}"),
        answer=ratio * other,
        result=facts.length(e + c, ratio * other),
    )


def unequal_sides(rng: random.Random) -> Puzzle:
    """Three sides are given, the difference of two of them is asked for."""
    a, b, c = draw_letters(rng, 3)
    first, second = rng.sample(range(5, 30), 2)
    third = rng.randint(abs(first - second) + 2, min(first + second - 2, 39))
    names = (a + b, b + c, c + a)
    given = dict(zip(names, (first, second, third)))
    longer, shorter = sorted(names[:2], key=given.get, reverse=True)
    large, small = given[longer], given[shorter]
    return Puzzle(
        Figure(_corners(a, b, c, rng.randint(40, 75), rng.randint(40, 75)), names, lengths=given),
        needed=(facts.length(longer, large), facts.length(shorter, small)),
        questions=(f"How much longer is {longer} than {shorter}?",),
        reason="The difference is the longer side less the shorter side.",
        steps=(f"{large} - {small} = {large - small}",),
        answer=large - small,
    )


def _corners(a: str, b: str, c: str, at_a: float, at_b: float) -> dict[str, Point]:
    """A triangle with these angles in degrees at the ends of its base ab, which has length 1."""
    left, right = math.radians(at_a), math.radians(at_b)
    reach = math.sin(right) / math.sin(left + right)
    return {a: (0.0, 0.0), b: (1.0, 0.0), c: (reach * math.cos(left), reach * math.sin(left))}


def _sometimes(rng: random.Random, side: str) -> dict[str, int]:
    """A length that nobody needs, beside this side of every third picture."""
    return {side: rng.randint(3, 39)} if rng.random() < 0.33 else {}
