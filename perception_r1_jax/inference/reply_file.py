"""Replies on their way to a file: nothing that was generated is lost where a long job is cut short."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from perception_r1_jax.errors import UserError

Row = dict[str, Any]
"""A line of the file: `id`, and the reply's fields, or `error`."""


class ReplyFile:
    """Keeps rows as they come, in `OUTPUT.partial`, and writes `OUTPUT` with all of them in their order at the end.

    The first line of the partial file says what was asked. Who asks the same again goes on from it.

    Attributes:
        rows: id -> row, of those kept so far.

    Args:
        output: where the rows will stand; an older file is replaced at the end.
        asked: all that replies depend on, as JSON has it.

    Raises:
        UserError: the partial file holds replies to something else.
    """

    def __init__(self, output: Path, asked: Mapping[str, Any]):
        self.rows: dict[str | int, Row] = {}
        self._output, self.partial = output, output.with_name(output.name + ".partial")
        end = self._read(asked) if self.partial.exists() else 0
        self._file = self.partial.open("ab")
        self._file.truncate(end)  # a line that was cut short
        if end == 0:
            self._append(asked)

    def _read(self, asked: Mapping[str, Any]) -> int:
        """Fills `rows`; returns the bytes of the whole lines."""
        content = self.partial.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole:
            then, *rows = map(json.loads, whole.split(b"\n")[:-1])
            if then != asked:
                raise UserError(
                    f"{self.partial} holds replies to something else ({_differences(then, asked)}). Ask as then to go "
                    "on from it, remove it, or choose another output."
                )
            self.rows = {row["id"]: row for row in rows}
        return len(whole)

    def add(self, row: Row) -> None:
        """Keeps a row. One with an error is not written yet: the fault may be mended until the job goes on."""
        self.rows[row["id"]] = row
        if "error" not in row:
            self._append(row)

    def finish(self, order: Iterable[str | int]) -> None:
        """Writes the rows of these ids, whole or not at all, and removes the partial file."""
        temporary = self._output.with_name(self._output.name + ".tmp")
        temporary.write_bytes(b"".join(_line(self.rows[name]) for name in order))
        os.replace(temporary, self._output)
        self.partial.unlink()

    def __enter__(self) -> ReplyFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def _append(self, content: Mapping[str, Any]) -> None:
        self._file.write(_line(content))
        self._file.flush()


def _line(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode("ascii")


def _differences(then: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    names = (name for name in asked if then.get(name) != asked[name])
    return "; ".join(f"{name} was {then.get(name)!r} and is {asked[name]!r}" for name in names)
