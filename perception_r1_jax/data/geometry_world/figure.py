"""A figure before it is drawn: lettered points, lines and circles, and the marks that say something about them."""

from __future__ import annotations

import dataclasses
import itertools

from perception_r1_jax.data.geometry_world import facts
from perception_r1_jax.data.geometry_world.facts import Fact

Point = tuple[float, float]


def between(start: Point, end: Point, share: float = 0.5) -> Point:
    """The point that lies this share of the way from one to the other."""
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure in coordinates of its own; layout.py turns and scales it.

    Attributes:
        points: by letter.
        segments: lines to draw, by the letters of their ends.
        circle: letter of the center and radius; None without one.
        lengths: a number to write beside a segment.
        angles: degrees to write into an angle.
        rights: angles with a small square.
        equal: segments with the same tick marks, a tuple for each number of ticks.
        parallel: segments with the same arrow heads, likewise.
        diameters: chords through the center.
    """

    points: dict[str, Point]
    segments: tuple[str, ...]
    _: dataclasses.KW_ONLY
    circle: tuple[str, float] | None = None
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    angles: dict[str, int] = dataclasses.field(default_factory=dict)
    rights: tuple[str, ...] = ()
    equal: tuple[tuple[str, ...], ...] = ()
    parallel: tuple[tuple[str, ...], ...] = ()
    diameters: tuple[str, ...] = ()

    def facts(self) -> tuple[Fact, ...]:
        """All that the picture says."""
        return (
            *(facts.length(name, value) for name, value in self.lengths.items()),
            *(facts.angle(name, degrees) for name, degrees in self.angles.items()),
            *(facts.right(name) for name in self.rights),
            *(facts.equal(*pair) for group in self.equal for pair in itertools.combinations(group, 2)),
            *(facts.parallel(*pair) for group in self.parallel for pair in itertools.combinations(group, 2)),
            *(facts.diameter(name) for name in self.diameters),
            *((facts.center(self.circle[0]),) if self.circle else ()),
        )
