"""A checking module for tests: it says what a test has scripted, or what a response's length happens to give."""

from __future__ import annotations

import dataclasses

STATES = ("right", "misread", "absent")


@dataclasses.dataclass(frozen=True)
class Seen:
    perceived: bool
    right: int
    wrong: int
    states: tuple[str, ...]


def perceive(row, response):
    """Two needed facts; their states and all else depend on the response alone."""
    if "raise" in response:
        raise KeyError("needed")
    size = len(response)
    return Seen(size % 2 == 0, size % 5, size % 3, (STATES[size % 3], STATES[size % 2]))


def probe(row):
    return "How long is AB?", "5"


def probe_right(row, response):
    return "5" in response
