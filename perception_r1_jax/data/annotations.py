r"""Visual facts of a diagram in words: Geometry3K's logic forms by rule, and the authors' `<infoK>` items.

A literal such as `Equals(LengthOf(Line(A, B)), 3x+1)` becomes "The length of AB is $3x+1$." Names are put
in alphabetical order where order means nothing, so a fact stated twice gives the same sentence twice.
A line through k lettered points comes as k(k-1)(k-2)/6 literals, one for every three of them: from four
points on they are told in one sentence.
Every literal is rendered, merged into the sentence of another, or left out with a reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Sequence

EMPTY = "empty"
UNREADABLE = "unreadable"  # not a well-formed literal, name or value
DEGENERATE = "degenerate"  # says nothing: a line from A to A, a length equal to itself
UNLETTERED = "unlettered point"  # names a helper point (`point_26`) that bears no letter in the diagram
NO_RULE = "no rule for the predicate"

POLYGONS = ("Triangle", "Quadrilateral", "Parallelogram", "Rectangle", "Rhombus", "Square", "Trapezoid")

_FACTOR = r"(?:[a-z]|\\pi|\\sqrt\{[^{}]+\}|\\frac\{[^{}]+\}\{[^{}]+\}|\([^()]+\))(?:\^\d+)?"
_TERM = rf"(?:\d+(?:\.\d+)?(?:{_FACTOR})*|(?:{_FACTOR})+)"
_VALUE = re.compile(rf"-?{_TERM}(?:[-+*/]{_TERM})*")

Form = str | tuple
"""A parsed literal: `Line(A, B)` is ("Line", "A", "B"), and a leaf is its text."""


class LeftOutLiteral(Exception):
    """A literal that yields no sentence; the message is one of the reasons above."""


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What became of the literals of one diagram.

    Attributes:
        sentences: M facts, each with its full stop, in the order of the literals.
        merged: literals that state a fact again.
        left_out: (literal, reason) of each literal that yields no sentence.
    """

    sentences: tuple[str, ...]
    merged: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def render_annotations(literals: Sequence[str]) -> Annotations:
    """The sentences of a `diagram_logic_form`, and what became of every literal in it."""
    lines = find_lines(literals)
    sentences, merged, left_out = {}, [], []
    for literal in literals:
        try:
            sentence = render_literal(literal, lines)
        except LeftOutLiteral as reason:
            left_out.append((literal, str(reason)))
            continue
        if sentence in sentences:
            merged.append(literal)
        sentences[sentence] = literal
    return Annotations(tuple(sentences), tuple(merged), tuple(left_out))


def render_literal(literal: str, lines: Sequence[frozenset[str]] = ()) -> str:
    """One literal as a sentence.

    Args:
        literal: as the data set has it.
        lines: the points of each line of the diagram, as from `find_lines`.

    Raises:
        LeftOutLiteral: it yields no sentence, for the reason in the message.
    """
    match parse_literal(literal):
        case ("PointLiesOnLine", point, ("Line", a, b)):
            return _incidence(point, a, b, lines)
        case ("PointLiesOnCircle", point, ("Circle", center, *_)):
            return f"Point {_names(point)} lies on circle {_names(center)}."
        case ("Parallel", ("Line", a, b), ("Line", c, d)):
            return "{} is parallel to {}.".format(*_two_lines((a, b), (c, d)))
        case ("Perpendicular", ("Line", a, b), ("Line", c, d)):
            corner = "".join(f" at {point}" for point in (a, b) if point in (c, d))
            return "{} is perpendicular to {}{}.".format(*_two_lines((a, b), (c, d)), corner)
        case ("Equals", ("Line", *_) as one, ("Line", *_) as other):
            return _equality(("LengthOf", one), ("LengthOf", other))
        case ("Equals", ("MeasureOf", ("Angle", a, b, c)), ("MeasureOf", ("Angle", number) | str(number))):
            return f"Angle {_unordered(a, b, c)} is marked as angle {_angle_number(number)}."
        case ("Equals", one, other):
            return _equality(one, other)
        case ("PointLiesOnLine" | "PointLiesOnCircle" | "Parallel" | "Perpendicular" | "Equals", *_):
            raise LeftOutLiteral(UNREADABLE)
        case _:
            raise LeftOutLiteral(NO_RULE)


def find_lines(literals: Sequence[str]) -> list[frozenset[str]]:
    """Sets of points such that any three of them are stated to lie on one line, as large as they grow.

    Asking for every triple keeps a mistaken literal from joining two lines into one.
    """
    triples = _stated_triples(literals)
    points = sorted(frozenset().union(*triples))
    lines: list[frozenset[str]] = []
    for line in triples:
        if any(line <= known for known in lines):
            continue
        for point in points:
            if all(frozenset((point, *pair)) in triples for pair in itertools.combinations(line, 2)):
                line = line | {point}
        lines.append(line)
    return lines


def _stated_triples(literals: Sequence[str]) -> dict[frozenset[str], None]:
    """Every three points that a literal places on one line, in the order of the literals."""
    triples = {}
    for literal in literals:
        with contextlib.suppress(LeftOutLiteral):
            match parse_literal(literal):
                case ("PointLiesOnLine", point, ("Line", a, b)):
                    triples[frozenset(_names(point, a, b))] = None
    return triples


def parse_literal(text: str) -> tuple:
    """`Name(argument, ...)`, nested, as a tuple. Raises `LeftOutLiteral` where the text is no such form."""
    if not text.strip():
        raise LeftOutLiteral(EMPTY)
    try:
        form = _parse(text)
    except RecursionError as error:  # parentheses without end
        raise LeftOutLiteral(UNREADABLE) from error
    if isinstance(form, str):
        raise LeftOutLiteral(UNREADABLE)
    return form


def _parse(text: str) -> Form:
    call = re.fullmatch(r"\s*([A-Z]\w+)\((.*)\)\s*", text)
    if call is None:
        return text.strip()
    return (call[1], *(_parse(argument) for argument in _split(call[2])))


def _split(text: str) -> list[str]:
    """Cuts at the commas outside all parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            raise LeftOutLiteral(UNREADABLE)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth > 0:
        raise LeftOutLiteral(UNREADABLE)
    return parts


def _names(*points: Form) -> str:
    """Points as written one after the other, each of them one capital letter and no two the same."""
    if any(str(point).startswith("point_") for point in points):
        raise LeftOutLiteral(UNLETTERED)
    if not all(re.fullmatch("[A-Z]", str(point)) for point in points):
        raise LeftOutLiteral(UNREADABLE)
    if len(set(points)) < len(points):
        raise LeftOutLiteral(DEGENERATE)
    return "".join(points)


def _unordered(*points: Form) -> str:
    """A line, an angle or an arc, the smaller end first: the same from whichever end it is read."""
    name = _names(*points)
    return min(name, name[::-1])


def _incidence(point: Form, a: Form, b: Form, lines: Sequence[frozenset[str]]) -> str:
    triple = _names(point, a, b)
    line = next((line for line in lines if line.issuperset(triple)), triple)
    if len(line) == 3:
        return f"Point {point} lies on line {_unordered(a, b)}."
    *most, last = sorted(line)
    return f"Points {', '.join(most)} and {last} lie on one line."


def _two_lines(one: Sequence[Form], other: Sequence[Form]) -> list[str]:
    lines = sorted((_unordered(*one), _unordered(*other)))
    if lines[0] == lines[1]:
        raise LeftOutLiteral(DEGENERATE)
    return lines


def _equality(one: Form, other: Form) -> str:
    subject = _quantity(one)
    match other:
        case str(value) | ("LengthOf", str(value)):
            return f"The {subject} is ${_value(value, in_degrees=one[0] == 'MeasureOf')}$."
    first, second = sorted((subject, _quantity(other)))
    if first == second:
        raise LeftOutLiteral(DEGENERATE)
    return f"The {first} equals the {second}."


def _quantity(form: Form) -> str:
    match form:
        case ("LengthOf", ("Line", a, b)):
            return f"length of {_unordered(a, b)}"
        case ("MeasureOf", ("Angle", a, b, c)):
            return f"measure of angle {_unordered(a, b, c)}"
        case ("LengthOf" | "MeasureOf" as kind, ("Arc", *points)):
            return f"{kind.removesuffix('Of').lower()} of arc {_unordered(*points)}"
        case ("LengthOf", ("HeightOf", (str(shape), *points))) if shape in POLYGONS:
            return f"height of {shape.lower()} {_names(*points)}"
        case ("AreaOf", (str(shape), *points)) if shape in POLYGONS:
            return f"area of {shape.lower()} {_names(*points)}"
        case _:
            raise LeftOutLiteral(UNREADABLE)


def _value(text: str, in_degrees: bool) -> str:
    if not _VALUE.fullmatch(text):
        raise LeftOutLiteral(UNREADABLE)
    if not in_degrees:
        return text
    simple = re.fullmatch(r"[\d.]*[a-z]?", text)
    return rf"{text}^\circ" if simple else rf"({text})^\circ"


def _angle_number(text: str) -> str:
    number = re.fullmatch(r"(?:angle )?(\d+)", text)
    if number is None:
        raise LeftOutLiteral(UNREADABLE)
    return number[1]
