"""The authors' parquet files: columns `problem`, `answer`, `images` and `visual_key_info`.

`problem` holds the question with its `<image>` markers; `images` a list of encoded bytes, of paths relative
to the file, or of {"bytes", "path"} as Hugging Face datasets write them; `visual_key_info` one string of
`<infoK>` items, or null. Further columns travel along in `Problem.row`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perception_r1_jax.data.errors import DataError, DroppedProblem
from perception_r1_jax.data.key_info import parse_key_info
from perception_r1_jax.records import ImageSource, Problem

ROWS_READ = 64

TEXT = (pa.string(), pa.large_string(), pa.string_view(), pa.null())
BYTES = (pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())


def _is_text(kind: pa.DataType) -> bool:
    return (kind.value_type if pa.types.is_dictionary(kind) else kind) in TEXT


def _is_answer(kind: pa.DataType) -> bool:
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return _is_text(kind) or any(is_number(kind) for is_number in numbers)


def is_images(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_list(kind) for is_list in lists):
        return pa.types.is_null(kind)
    item = kind.value_type
    if not pa.types.is_struct(item):
        return item in BYTES or _is_text(item)
    fields = {field.name: field.type for field in item if field.name in ("bytes", "path")}
    return bool(fields) and fields.get("bytes", pa.null()) in BYTES and _is_text(fields.get("path", pa.null()))


Columns = Mapping[str, tuple[Callable[[pa.DataType], bool], str]]
"""Of each column that a file must have, the types that fit and their name. A column may be all null."""

COLUMNS: Columns = {
    "problem": (_is_text, "string"),
    "answer": (_is_answer, "string or a number"),
    "images": (is_images, "a list of binary, of string (paths), or of struct<bytes: binary, path: string>"),
    "visual_key_info": (_is_text, "string (one, with its <info1>...</info1> items)"),
}
"""Of problems."""


def read_parquet(path: Path) -> Iterator[Problem | DroppedProblem]:
    """The rows of one file in order, a few in memory at a time; a bad row comes as the reason why.

    A problem's id is the file's name and the row's number from 0.

    Raises:
        DataError: the file is not parquet, lacks a column, or has one of a type that cannot be.
    """
    for number, row in enumerate(parquet_rows(path, COLUMNS)):
        yield _to_problem(row, f"{path.stem}/{number}", path.parent)


def parquet_rows(path: Path, columns: Columns) -> Iterator[pa.RecordBatch]:
    """The rows, each a batch of its own, so that one that cannot be read costs no other.

    Raises:
        DataError: the file is not parquet, lacks one of the columns, or has one of a type that cannot be.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, columns)
            _check_types(path, file.schema_arrow, columns)
            for batch in file.iter_batches(batch_size=ROWS_READ):
                yield from map(batch.slice, range(len(batch)), itertools.repeat(1))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error


def _check_columns(path: Path, found: list[str], columns: Columns) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, found))}. "
            f"Rename or add columns until it has {', '.join(columns)} (the last one may be null)."
        )


def _check_types(path: Path, schema: pa.Schema, columns: Columns) -> None:
    found = dict(zip(schema.names, schema.types))
    wrong = [
        f"column {name!r} is {found[name]}, expected {expected}"
        for name, (fits, expected) in columns.items()
        if not fits(found[name])
    ]
    if wrong:
        raise DataError(f"{path}: {'; '.join(wrong)}. Convert it and write the file again.")


def _to_problem(record: pa.RecordBatch, problem_id: str, folder: Path) -> Problem | DroppedProblem:
    try:
        row = to_row(record, problem_id)
        return Problem(
            problem_id=problem_id,
            question=row["problem"] or "",
            images=tuple(read_image(value, problem_id, folder) for value in row["images"] or ()),
            answer=_answer(row["answer"]),
            annotations=_annotations(row["visual_key_info"], problem_id),
            row=row,
        )
    except DroppedProblem as dropped:
        return dropped


def to_row(record: pa.RecordBatch, problem_id: str) -> dict[str, Any]:
    """The columns of a row. Raises `DroppedProblem` where one has no form in Python."""
    try:
        return record.to_pylist()[0]
    except ValueError as error:  # Text that is not UTF-8; times that Python cannot hold.
        raise DroppedProblem(problem_id, "unreadable row", str(error)) from error


def _answer(value: str | float | None) -> str:
    """Empty for a null, and for the NaN that stands for one in a column of floats."""
    return "" if value is None or value != value else str(value)


def _annotations(key_info: str | None, problem_id: str) -> tuple[str, ...]:
    try:
        return parse_key_info(key_info)
    except ValueError as error:
        raise DroppedProblem(problem_id, "malformed visual_key_info", str(error)) from error


def read_image(value: Any, problem_id: str, folder: Path) -> ImageSource:
    """A picture: bytes, a path relative to `folder`, or either in {"bytes", "path"}. Else `DroppedProblem`."""
    match value:
        case bytes(encoded) | {"bytes": bytes(encoded)}:
            return encoded
        case str(path) | {"path": str(path)}:
            return folder / path
        case _:
            raise DroppedProblem(problem_id, "absent image", f"neither bytes nor a path: {value!r}")
