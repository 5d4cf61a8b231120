"""Facts in words, and back: the sentences of the world, and the reader that finds facts in any text."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator

from perception_r1_jax.data.geometry_world.facts import (
    ANGLE,
    CENTER,
    DIAMETER,
    EQUAL,
    LENGTH,
    PARALLEL,
    RIGHT,
    Fact,
    make_fact,
)

SENTENCES = {
    LENGTH: ("The length of {0} is {value}.", "{0} is {value}.", "Segment {0} measures {value}."),
    ANGLE: ("Angle {0} measures {value} degrees.", "Angle {0} is {value} degrees.", "Angle {0} = {value} degrees."),
    RIGHT: ("Angle {0} is a right angle.", "Angle {0} is right."),
    EQUAL: ("{0} and {1} are marked equal.", "{0} is equal to {1}."),
    PARALLEL: ("{0} is parallel to {1}.", "{0} and {1} are parallel."),
    DIAMETER: ("{0} is a diameter.", "{0} is a diameter of the circle."),
    CENTER: ("{0} is the center of the circle.", "The center of the circle is {0}."),
}
"""By kind, the ways to say a fact; an annotation is the first of them."""

QUESTIONS = {
    LENGTH: "What is the length of {0}?",
    ANGLE: "What is the measure of angle {0}?",
    RIGHT: "Which angle is a right angle?",
    EQUAL: "Which segment is marked equal to {0}?",
    PARALLEL: "Which segment is parallel to {0}?",
    DIAMETER: "Which segment is a diameter?",
    CENTER: "Which point is the center of the circle?",
}
"""By kind, how a single fact is asked for. The answer is the number, or the name that the question lacks."""

# A number that a calculation goes on with ("180 - 40") is no value, and a term of a sum ("AB + BC = 9") no segment.
_VALUE = r"(?P<value>\d+)(?!\d|\.\d|\s*[-+*/])"
_SEGMENT = r"(?<![-+*/] )\b(?P<a>[A-Z]{2})\b"
_OTHER = r"(?P<b>[A-Z]{2})\b"
_ANGLE = r"\b[Aa]ngle (?P<a>[A-Z]{3})\b"
_IS = r"(?:is|measures|=|has length)(?P<no> not)?"
_ARE = r"are(?P<no> not)?"

READERS = (
    (LENGTH, rf"{_SEGMENT} {_IS} {_VALUE}(?! degrees)"),
    (ANGLE, rf"{_ANGLE} {_IS} {_VALUE}"),
    (RIGHT, rf"{_ANGLE} {_IS} (?:a right angle|right)\b"),
    (EQUAL, rf"{_SEGMENT} and {_OTHER} {_ARE}(?: marked)? equal"),
    (EQUAL, rf"{_SEGMENT} {_IS}(?: marked)? equal to {_OTHER}"),
    (PARALLEL, rf"{_SEGMENT} {_IS} parallel to {_OTHER}"),
    (PARALLEL, rf"{_SEGMENT} and {_OTHER} {_ARE} parallel"),
    (DIAMETER, rf"{_SEGMENT} {_IS} a diameter"),
    (CENTER, r"\b(?P<a>[A-Z]) is(?P<no> not)? the center"),
    (CENTER, r"\bcenter of the circle is(?P<no> not)? (?P<a>[A-Z])\b"),
)
"""What a statement of each kind looks like, more widely than the world itself says it."""

_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in READERS)

_REASONING = re.compile(r"\b[Ss]o\b[^.\n]*")
"""What follows a "so" up to the end of the sentence is concluded, not seen."""


@dataclasses.dataclass(frozen=True)
class Statement:
    """A fact as a text states it.

    Attributes:
        fact: what is stated, or denied.
        words: the part of the text that says so; statements of the same in other words, or places, are equal.
        start: where it stands in the text, in characters.
        denied: the text says that it is not so.
        concluded: it stands behind a "so", as a result of reasoning.
    """

    fact: Fact
    words: str = dataclasses.field(compare=False)
    start: int = dataclasses.field(compare=False)
    denied: bool
    concluded: bool = dataclasses.field(compare=False)

    def contradicts(self, fact: Fact) -> bool:
        """Whether it denies the fact, or states another value for what the fact is about."""
        return self.fact.subject == fact.subject and (self.fact == fact) == self.denied


def say(fact: Fact, way: int = 0) -> str:
    """The fact as a sentence: the annotation, or another way where the kind has that many."""
    ways = SENTENCES[fact.kind]
    return ways[way % len(ways)].format(*fact.names, value=fact.value)


def say_freely(fact: Fact, rng: random.Random) -> str:
    """The fact in a way, and with the names in an order, drawn at random."""
    names = [name if rng.random() < 0.5 else name[::-1] for name in fact.names]
    rng.shuffle(names)
    return say(dataclasses.replace(fact, names=tuple(names)), rng.randrange(len(SENTENCES[fact.kind])))


def deny(sentence: str) -> str:
    """The opposite of a sentence of the world."""
    return re.sub(r" (is|are|measures|=|has) ", r" \1 not ", sentence, count=1)


def ask(fact: Fact, rng: random.Random) -> tuple[str, str]:
    """A question that this fact alone answers, and the answer."""
    names = rng.sample(fact.names, len(fact.names))
    answer = names[-1] if fact.value is None else str(fact.value)
    return QUESTIONS[fact.kind].format(*names), answer


def read_fact(sentence: str) -> Fact:
    """The fact that a sentence of the world states. Raises ValueError where it is not exactly one."""
    (statement,) = statements(sentence)
    return statement.fact


def statements(text: str) -> Iterator[Statement]:
    """All facts that a text states or denies, in no particular order."""
    concluded = [match.span() for match in _REASONING.finditer(text)]
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            names = tuple(parts[name] for name in ("a", "b") if parts.get(name))
            value = int(parts["value"]) if parts.get("value") else None
            inside = any(start <= match.start() < end for start, end in concluded)
            fact = make_fact(kind, names, value)
            yield Statement(fact, match.group(), match.start(), bool(parts["no"]), inside)
