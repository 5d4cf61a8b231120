"""Small drawn geometry problems, made from an index: input for a run without any data.

Splits are disjoint by construction: the first number written in a picture is 0, 1 or 2 modulo 3 in train,
val and test.
"""

from __future__ import annotations

import io
import math
import random

from PIL import Image, ImageDraw, ImageFont

from perception_r1_jax.records import IMAGE_MARKER, Problem

SPLITS = ("train", "val", "test")
DRAWN_PROBLEMS = 512
"""How many problems of a split a run takes."""

SIDES = (140, 168, 196)
"""Widths and heights in pixels: whole merge units of 28."""

LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
MARGIN = 20
Point = tuple[float, float]


def draw_problem(index: int, split: str = "train", seed: int = 0) -> Problem:
    """Problem number `index` of a split: the same for the same three arguments, without end in `index`."""
    rng = random.Random(f"{seed}/{split}/{index}")
    draw = rng.choice((_segment, _triangle))
    canvas = _Canvas(rng.choice(SIDES), rng.choice(SIDES))
    letters = rng.sample(LETTERS, 3)
    question, answer, annotations = draw(rng, canvas, letters, SPLITS.index(split))
    return Problem(
        problem_id=f"drawn-{seed}/{split}/{index}",
        question=IMAGE_MARKER + question,
        images=(canvas.png(),),
        answer=str(answer),
        annotations=annotations,
        row={"kind": draw.__name__.strip("_"), "letters": "".join(letters)},
    )


def _segment(rng: random.Random, canvas: _Canvas, letters: list[str], residue: int):
    """Three points on a line, two lengths; the whole is asked for."""
    a, b, c = letters
    first, second = _number(rng, 2, 30, residue), rng.randint(2, 30)
    y = canvas.height * rng.uniform(0.4, 0.6)
    left, right = MARGIN, canvas.width - MARGIN
    middle = left + (right - left) * min(max(first / (first + second), 0.3), 0.7)
    canvas.path(letters, [(left, y), (middle, y), (right, y)], label_offset=-12)
    canvas.write(first, ((left + middle) / 2, y + 12))
    canvas.write(second, ((middle + right) / 2, y + 12))
    annotations = (
        f"Point {b} lies on line {a}{c}.",
        f"The length of {a}{b} is ${first}$.",
        f"The length of {b}{c} is ${second}$.",
    )
    return f"Find {a}{c}.", first + second, annotations


def _triangle(rng: random.Random, canvas: _Canvas, letters: list[str], residue: int):
    """A triangle with two of its angles, drawn true to them; the third is asked for."""
    a, b, c = letters
    first, second = _number(rng, 40, 75, residue), rng.randint(40, 75)
    corners = _corners(first, second, canvas)
    canvas.path(letters, corners, closed=True)
    for degrees, corner in zip((first, second), corners):
        canvas.write(f"{degrees}°", _towards_center(corner, corners))
    annotations = (
        rf"The measure of angle {b}{a}{c} is ${first}^\circ$.",
        rf"The measure of angle {a}{b}{c} is ${second}^\circ$.",
    )
    return rf"Find the measure of $\angle {a}{c}{b}$ in degrees.", 180 - first - second, annotations


def _number(rng: random.Random, low: int, high: int, residue: int) -> int:
    return rng.choice([number for number in range(low, high + 1) if number % 3 == residue])


def _corners(first: int, second: int, canvas: _Canvas) -> list[Point]:
    """A triangle on a horizontal base with these angles in degrees at its ends, as large as fits."""
    left, right = math.tan(math.radians(first)), math.tan(math.radians(second))
    foot, height = right / (left + right), left * right / (left + right)  # of the apex, for a base of 1
    base = min(canvas.width - 2 * MARGIN, (canvas.height - 2 * MARGIN) / height)
    x, y = (canvas.width - base) / 2, (canvas.height + base * height) / 2
    return [(x, y), (x + base, y), (x + base * foot, y - base * height)]


def _towards_center(corner: Point, corners: list[Point]) -> Point:
    center = [sum(axis) / 3 for axis in zip(*corners)]
    return tuple(0.55 * start + 0.45 * end for start, end in zip(corner, center))


class _Canvas:
    """A white picture with black lines and letters; coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._image = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._font = ImageFont.load_default(size=12)

    def path(self, letters: list[str], points: list[Point], closed: bool = False, label_offset: float | None = None):
        """Lines from point to point, with a dot and a letter at each: above it, or away from the path's center."""
        self._draw.line(points + points[:1] * closed, fill="black", width=2)
        center = [sum(axis) / len(points) for axis in zip(*points)]
        for letter, (x, y) in zip(letters, points):
            self._draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill="black")
            distance = math.dist((x, y), center) or 1.0
            away = (12 * (x - center[0]) / distance, 12 * (y - center[1]) / distance)
            dx, dy = away if label_offset is None else (0, label_offset)
            self.write(letter, (x + dx, y + dy))

    def write(self, text: str | int, center: Point) -> None:
        """Text around a point."""
        self._draw.text(center, str(text), fill="black", font=self._font, anchor="mm")

    def png(self) -> bytes:
        """The picture, encoded."""
        file = io.BytesIO()
        self._image.save(file, "PNG")
        return file.getvalue()
