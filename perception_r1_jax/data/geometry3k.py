"""Geometry3K as JSON lines, with the human diagram annotations in words.

A folder holds `train.jsonl`, `val.jsonl` and `test.jsonl`; image paths in them are relative to the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perception_r1_jax.data.annotations import render_annotations
from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.data.json_lines import numbered_lines, parse_object
from perception_r1_jax.data.scan import ScanReport
from perception_r1_jax.records import IMAGE_MARKER, Problem

FIELDS = {
    "id": int | str,
    "problem_text": str,
    "answer_latex": str | None,
    "image": str,
    "diagram_logic_form": list,
}
"""The fields that every row must have, and their types."""

OPTIONAL_FIELDS = {
    "annotat_text": str | None,
    "answer_rounded": str | None,
    "answer_value": str | None,
    "choices": list | None,
}
"""Fields that a row may have; null is the same as none."""


def read_geometry3k(folder: Path, split: str, report: ScanReport) -> Iterator[Problem | DroppedProblem]:
    """The rows of `folder/split.jsonl` in order; a row that cannot be read comes as the reason why.

    `report` takes the count of logic-form literals.
    """
    path = folder / f"{split}.jsonl"
    for number, line in numbered_lines(path):
        try:
            yield _to_problem(_parse_row(line, f"{path}:{number}"), folder, split, report)
        except DroppedProblem as dropped:
            yield dropped


def _parse_row(line: bytes, place: str) -> dict[str, Any]:
    row = parse_object(line, place)
    missing = [field for field in FIELDS if field not in row]
    if missing:
        raise DroppedProblem(place, "missing fields", f"{', '.join(missing)}; found {', '.join(row)}")
    kinds = FIELDS | OPTIONAL_FIELDS
    wrong = [field for field, kind in kinds.items() if not isinstance(row.get(field), kind)]
    if wrong:
        raise DroppedProblem(place, "mistyped fields", ", ".join(f"{field} is {row[field]!r}" for field in wrong))
    return row


def _to_problem(row: dict[str, Any], folder: Path, split: str, report: ScanReport) -> Problem:
    problem_id = f"geometry3k/{split}/{row['id']}"
    rendered = render_annotations([str(literal) for literal in row["diagram_logic_form"]])
    report.add_literals(problem_id, rendered)
    question = row.get("annotat_text") or row["problem_text"]
    return Problem(
        problem_id=problem_id,
        question=IMAGE_MARKER + question,
        images=(folder / row["image"],),
        answer=ground_truth(row, question, problem_id),
        annotations=rendered.sentences,
        row=row,
    )


def ground_truth(row: dict[str, Any], question: str, problem_id: str) -> str:
    r"""The answer that the question asks for: rounded where it says so, else exact (LaTeX).

    The rounded answer was derived from `problem_text`; where only the other wording of the question asks
    for rounding, the right choice is the rounded answer.

    Raises:
        DroppedProblem: the question asks for rounding, and the row has neither.
    """
    if row.get("answer_rounded"):
        return row["answer_rounded"]
    if "nearest" not in question:
        return row["answer_latex"] or ""
    if not (row.get("choices") and row.get("answer_value")):
        raise DroppedProblem(problem_id, "no rounded answer", "neither answer_rounded nor choices and answer_value")
    return row["answer_value"]
