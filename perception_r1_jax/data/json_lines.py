"""JSON-lines files, a row at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perception_r1_jax.data.errors import DroppedProblem


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold anything, with their numbers from 1."""
    with path.open("rb") as lines:
        yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def parse_object(line: bytes, place: str) -> dict[str, Any]:
    """The object in a line. Raises `DroppedProblem` naming the place of one that holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DroppedProblem(place, "invalid JSON", str(error)) from error
    if not isinstance(row, dict):
        raise DroppedProblem(place, "not a JSON object", type(row).__name__)
    return row
