"""Facts: what a picture of the world shows, one at a time.

A fact is about segments ("AB"), angles ("ABC", the vertex in the middle) or points ("O"). One thing has one name
here: the letters of a segment, the ends of an angle and the members of a pair are in alphabetical order.
"""

from __future__ import annotations

import dataclasses

LENGTH, ANGLE, RIGHT, EQUAL, PARALLEL, DIAMETER, CENTER = (
    "length",
    "angle",
    "right",
    "equal",
    "parallel",
    "diameter",
    "center",
)

KINDS = (LENGTH, ANGLE, RIGHT, EQUAL, PARALLEL, DIAMETER, CENTER)


@dataclasses.dataclass(frozen=True, order=True)
class Fact:
    """One fact.

    Attributes:
        kind: one of the words above.
        names: what it is about, in canonical form; two names where it relates two things.
        value: the number written in the picture (units of length, or degrees); None for a relation.
    """

    kind: str
    names: tuple[str, ...]
    value: int | None = None

    @property
    def subject(self) -> tuple[str, tuple[str, ...]]:
        """What the fact is about: two facts with one subject and unlike values contradict each other."""
        return self.kind, self.names


def make_fact(kind: str, names: tuple[str, ...], value: int | None = None) -> Fact:
    """A fact from names as somebody wrote them: "BA" is "AB", and "CD is parallel to AB" is "AB ... to CD"."""
    return Fact(kind, tuple(sorted(map(canonical, names))), value)


def canonical(name: str) -> str:
    """The one name of a segment or an angle. An angle's vertex stays in the middle."""
    ends = sorted((name[0], name[-1]))
    return name if len(name) == 1 else ends[0] + name[1:-1] + ends[1]


def length(name: str, value: int) -> Fact:
    """A number beside a segment."""
    return make_fact(LENGTH, (name,), value)


def angle(name: str, degrees: int) -> Fact:
    """A number in an angle."""
    return make_fact(ANGLE, (name,), degrees)


def right(name: str) -> Fact:
    """A small square in an angle."""
    return make_fact(RIGHT, (name,))


def equal(first: str, second: str) -> Fact:
    """The same tick marks on two segments."""
    return make_fact(EQUAL, (first, second))


def parallel(first: str, second: str) -> Fact:
    """The same arrow heads on two segments."""
    return make_fact(PARALLEL, (first, second))


def diameter(name: str) -> Fact:
    """A chord through the center of the circle."""
    return make_fact(DIAMETER, (name,))


def center(name: str) -> Fact:
    """The point in the middle of the circle."""
    return make_fact(CENTER, (name,))
