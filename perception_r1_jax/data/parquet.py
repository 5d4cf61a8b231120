"""The authors' parquet files: columns `problem`, `answer`, `images` and `visual_key_info`.

`problem` holds the question with its `<image>` markers; `images` a list of encoded bytes, of paths relative
to the file, or of {"bytes", "path"} as Hugging Face datasets write them; `visual_key_info` one string of
`<infoK>` items, or null. Further columns travel along in `Problem.row`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perception_r1_jax.data.errors import DataError, DroppedProblem
from perception_r1_jax.data.key_info import parse_key_info
from perception_r1_jax.records import ImageSource, Problem

COLUMNS = ("problem", "answer", "images", "visual_key_info")
ROWS_READ = 64


def read_parquet(path: Path) -> Iterator[Problem | DroppedProblem]:
    """The rows of one file in order, a few in memory at a time; a bad row comes as the reason why.

    A problem's id is the file's name and the row's number from 0.

    Raises:
        DataError: the file is not parquet, or lacks a column.
    """
    for number, row in enumerate(_rows(path)):
        yield _to_problem(row, f"{path.stem}/{number}", path.parent)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=ROWS_READ):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error


def _check_columns(path: Path, found: list[str]) -> None:
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, found))}. "
            f"Rename or add columns until it has {', '.join(COLUMNS)} (visual_key_info may be null)."
        )


def _to_problem(row: dict[str, Any], problem_id: str, folder: Path) -> Problem | DroppedProblem:
    try:
        return Problem(
            problem_id=problem_id,
            question=row["problem"] or "",
            images=tuple(_image(value, problem_id, folder) for value in row["images"] or ()),
            answer="" if row["answer"] is None else str(row["answer"]),
            annotations=_annotations(row["visual_key_info"], problem_id),
            row=row,
        )
    except DroppedProblem as dropped:
        return dropped


def _annotations(key_info: str | None, problem_id: str) -> tuple[str, ...]:
    try:
        return parse_key_info(key_info)
    except ValueError as error:
        raise DroppedProblem(problem_id, "malformed visual_key_info", str(error)) from error


def _image(value: Any, problem_id: str, folder: Path) -> ImageSource:
    match value:
        case bytes(encoded) | {"bytes": bytes(encoded)}:
            return encoded
        case str(path) | {"path": str(path)}:
            return folder / path
        case _:
            raise DroppedProblem(problem_id, "absent image", f"neither bytes nor a path: {value!r}")
