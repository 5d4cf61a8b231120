"""Circles: the angle over a diameter, central and inscribed angles."""

from __future__ import annotations

import math
import random

from perception_r1_jax.data.geometry_world import facts
from perception_r1_jax.data.geometry_world.figure import Figure, Point
from perception_r1_jax.data.geometry_world.puzzle import Puzzle, draw_letters

AT_CENTER = "The angle at the center is twice the angle at the circle."


def on_diameter(rng: random.Random) -> Puzzle:
    """A triangle over a diameter: one of its angles is given, another or the one at the center is asked for."""
    a, b, c, o = draw_letters(rng, 4)
    degrees = rng.randint(25, 65)
    at_center = rng.random() < 0.5
    asked, answer = (b + o + c, 2 * degrees) if at_center else (a + b + c, 90 - degrees)
    figure = Figure(
        {o: (0, 0), a: (-1, 0), b: (1, 0), c: _at(2 * degrees)},
        (a + b, b + c, c + a, o + c),
        circle=(o, 1.0),
        angles={c + a + b: degrees},
        diameters=(a + b,),
    )
    return Puzzle(
        figure,
        needed=(facts.diameter(a + b), facts.angle(c + a + b, degrees)),
        questions=(f"Find the measure of angle {asked}.",),
        reason=AT_CENTER if at_center else "The angle over a diameter is 90 degrees.",
        steps=(f"2 * {degrees} = {answer}" if at_center else f"90 - {degrees} = {answer}",),
        answer=answer,
        result=facts.angle(asked, answer),
    )


def inscribed_angle(rng: random.Random) -> Puzzle:
    """From the angle at the center to the angle at the circle, or back."""
    a, b, c, o = draw_letters(rng, 4)
    half = rng.randint(25, 70)
    values = {a + o + b: 2 * half, a + c + b: half}
    given, asked = rng.sample(list(values), 2)
    top = rng.uniform(-20, 20)
    points = {o: (0, 0), a: _at(-90 - half), b: _at(-90 + half), c: _at(90 + top)}
    step = f"{values[given]} / 2 = {half}" if given == a + o + b else f"2 * {half} = {2 * half}"
    return Puzzle(
        Figure(points, (o + a, o + b, c + a, c + b), circle=(o, 1.0), angles={given: values[given]}),
        needed=(facts.center(o), facts.angle(given, values[given])),
        questions=(f"Find the measure of angle {asked}.",),
        reason=AT_CENTER,
        steps=(step,),
        answer=values[asked],
        result=facts.angle(asked, values[asked]),
    )


def _at(degrees: float) -> Point:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
