"""The few shapes that the ablation's charts are made of, as text of an SVG file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from html import escape

from perception_r1_jax.report.plots import nice_ticks

INK, PALE = "#333333", "#d0d0d0"


@dataclasses.dataclass(frozen=True)
class Axis:
    """From values to pixels: `ticks` are round values that hold all data, `start` and `end` where the outer two lie."""

    ticks: Sequence[float]
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float) -> Axis:
        """One that holds these values, at least one."""
        values = list(values)
        return cls(nice_ticks(min(values), max(values)), start, end)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def line(points: Sequence[tuple[float, float]], colour: str = INK, width: float = 1.0) -> str:
    """A line through two or more points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def dot(x: float, y: float, colour: str, radius: float = 3.5) -> str:
    """A filled circle."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.75"/>'


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal", colour: str = INK) -> str:
    """A line of text; `anchor` is "start", "middle" or "end"."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-weight="{weight}" fill="{colour}">{escape(words)}</text>'


def document(width: float, height: float, title: str, shapes: Iterable[str]) -> str:
    """An SVG file on white, so that it reads on dark pages too."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *shapes,
        "</svg>\n",
    ])  # fmt: skip
