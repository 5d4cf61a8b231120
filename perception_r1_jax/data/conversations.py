"""Conversations to imitate: from files as TRL and ms-swift write them, or drawn from the geometry world by name.

A row has `messages`, a list of {"role", "content"}, and `images`, a list: paths relative to the file, and in parquet
also encoded bytes or {"bytes", "path"}. A content is a text with an `<image>` marker where each picture belongs
(none: the pictures come first), or a list of parts {"type": "text", "text": ...} and {"type": "image"}.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from perception_r1_jax.data.errors import DataError, DroppedProblem
from perception_r1_jax.data.geometry_world.conversations import (
    binding_conversation,
    judge_conversation,
    policy_conversation,
    reading_conversation,
)
from perception_r1_jax.data.geometry_world.problems import SHARES
from perception_r1_jax.data.json_lines import numbered_lines, parse_object
from perception_r1_jax.data.load import splits_in
from perception_r1_jax.data.parquet import COLUMNS, Columns, parquet_rows, read_image, to_row
from perception_r1_jax.data.scan import RowReport, check_headers, check_unicode
from perception_r1_jax.records import IMAGE_MARKER, Conversation, Message


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


ROLES = ("system", "user", "assistant")
WORLD = {
    "geometry_world:reading": reading_conversation,
    "geometry_world:binding": binding_conversation,
    "geometry_world:policy": policy_conversation,
    "geometry_world:judge": judge_conversation,
}
"""Sources that are drawn, not read, and what draws a conversation of (index, split, seed)."""

PARQUET_COLUMNS: Columns = {
    "messages": (_is_list, "a list of struct<role: string, content: string>"),
    "images": COLUMNS["images"],
}
"""What a parquet file must have; images may be null."""

ENDLESS = 2**30
"""How many conversations a drawn source says it has: more than any run takes."""


@dataclasses.dataclass(frozen=True)
class DrawnConversations(Sequence[Conversation]):
    """The conversations of the geometry world under one seed, each made when it is asked for.

    Attributes:
        path: one of `WORLD`.
        split: one of `SHARES`; splits share no problem.
        seed: another one has other conversations.
    """

    path: str
    split: str
    seed: int

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Conversation:
        return WORLD[self.path](index, self.split, self.seed)


def load_conversations(
    path: str, split: str, seed: int, field: str = "data.split"
) -> tuple[Sequence[Conversation], str]:
    """Reads and checks one split.

    Args:
        path: a folder with `{split}.jsonl` or `{split}*.parquet`, one such file (which is then the split, whatever
            its name), or one of `WORLD`.
        split: "train", "val", "test", or as the files are named.
        seed: of a drawn source.
        field: of the config that says the split, for messages.

    Returns:
        The usable conversations in the order of the source, and what became of every row, in a few lines for people.

    Raises:
        DataError: nothing is there, a file cannot be used at all, or no row of it can.
    """
    if path in WORLD:
        return _drawn(path, split, seed, field), f"{path} ({split}): each conversation is drawn when it is needed"
    report = RowReport(f"{path} ({split})")
    conversations = _checked(itertools.chain.from_iterable(map(_read, _files(Path(path), split, field))), report)
    if not conversations:
        raise DataError(f"No usable conversation in {path}. What was found:\n{report.summary()}")
    return conversations, report.summary()


def _drawn(path: str, split: str, seed: int, field: str) -> DrawnConversations:
    if split not in SHARES:
        raise DataError(f"{path} has no split {split!r}; set {field} to one of {', '.join(SHARES)}.")
    return DrawnConversations(path, split, seed)


def _files(source: Path, split: str, field: str) -> list[Path]:
    if source.is_file() and source.suffix in (".jsonl", ".parquet"):
        return [source]
    if (source / f"{split}.jsonl").is_file():
        return [source / f"{split}.jsonl"]
    if files := sorted(source.glob(f"{split}*.parquet")):
        return files
    if there := splits_in(source):
        raise DataError(
            f"{source.absolute()} has no {split}.jsonl or {split}*.parquet. Set {field} to one of {', '.join(there)}."
        )
    raise DataError(
        f"{source.absolute()} is no .jsonl or .parquet file and no folder with {split}.jsonl or {split}*.parquet. "
        f"Set data.path to one, or to {' or '.join(map(repr, WORLD))}."
    )


def _read(file: Path) -> Iterator[Conversation | DroppedProblem]:
    """The rows of one file in order; a bad row comes as the reason why."""
    if file.suffix == ".parquet":
        parse, rows = to_row, enumerate(parquet_rows(file, PARQUET_COLUMNS))
    else:
        parse, rows = parse_object, numbered_lines(file)
    for number, row in rows:
        name = f"{file.stem}/{number}"
        try:
            yield _to_conversation(parse(row, name), name, file.parent)
        except DroppedProblem as dropped:
            yield dropped


def _to_conversation(row: dict[str, Any], name: str, folder: Path) -> Conversation:
    messages, images = row.get("messages"), row.get("images") or ()
    if not isinstance(messages, list) or not isinstance(images, list | tuple):
        raise DroppedProblem(name, "messages or images are no list", f"found {', '.join(row)}")
    return Conversation(
        conversation_id=name,
        images=tuple(read_image(value, name, folder) for value in images),
        messages=tuple(_to_message(message, name) for message in messages),
    )


def _to_message(message: Any, name: str) -> Message:
    match message:
        case {"role": str(role), "content": str(text)} if role in ROLES:
            return Message(role, text)
        case {"role": str(role), "content": list(parts)} if role in ROLES:
            return Message(role, "".join(_part(part, name) for part in parts))
        case _:
            raise DroppedProblem(name, f"a message without a role ({', '.join(ROLES)}) and a content", repr(message))


def _part(part: Any, name: str) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image"}:
            return IMAGE_MARKER
        case _:
            raise DroppedProblem(name, "a part that is neither text nor image", repr(part))


def _checked(rows: Iterable[Conversation | DroppedProblem], report: RowReport) -> list[Conversation]:
    """The conversations fit for use, in order; `report` takes the count of all rows and the names of the others."""
    kept: list[Conversation] = []
    for row in rows:
        report.rows += 1
        try:
            kept.append(_check(row))
        except DroppedProblem as dropped:
            report.skip(dropped)
    report.kept = len(kept)
    return kept


def _check(row: Conversation | DroppedProblem) -> Conversation:
    """The row as a conversation. Raises `DroppedProblem` for whatever would spoil a step later."""
    if isinstance(row, DroppedProblem):
        raise row
    check_unicode(row.conversation_id, (message.content for message in row.messages))
    if not any(message.role == "assistant" and message.content for message in row.messages):
        raise DroppedProblem(row.conversation_id, "no response", "no assistant turn with a text")
    check_headers(row.conversation_id, row.images)
    return row
