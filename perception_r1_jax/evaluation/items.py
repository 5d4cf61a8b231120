"""What becomes of each evaluated problem."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Item:
    """One problem's line in the file of an evaluation. A field without data is None.

    Attributes:
        problem_id: of the problem.
        response: as generated; None where the prompt could not be asked.
        finish_reason: "stop", or "length" where the response was cut at the limit; it is then graded as it stands.
        extracted: the part of the response that is compared with the ground truth.
        accuracy: 1.0 or 0.0.
        perception: 1.0 or 0.0, whether the response perceives the picture; this and all below by a checker.
        facts_right: stated facts that are true of the picture.
        facts_wrong: stated facts that are not.
        fact_states: "right", "misread" or "absent" of each fact that the solution needs.
        probe: 1.0 or 0.0, whether the question for a single fact is answered rightly.
        probe_response: the answer to it.
        probe_finish_reason: as `finish_reason`.
        failures: field -> why it has no data where it should have.
    """

    problem_id: str
    response: str | None = None
    finish_reason: str | None = None
    extracted: str | None = None
    accuracy: float | None = None
    perception: float | None = None
    facts_right: int | None = None
    facts_wrong: int | None = None
    fact_states: Sequence[str] | None = None
    probe: float | None = None
    probe_response: str | None = None
    probe_finish_reason: str | None = None
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_items(path: Path) -> list[Item]:
    """The items of an evaluation's file; what a line has besides is of another version."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [_read_item(json.loads(line)) for line in file]


def _read_item(line: Mapping[str, Any]) -> Item:
    return Item(**{field.name: line[field.name] for field in dataclasses.fields(Item) if field.name in line})
