"""The input of supervised training: conversations, prepared ahead, packed into batches of rows.

    conversations -> shuffle (by seed and epoch) -> repeat -> prepare (threads, ahead) -> first fit into rows

An example that fits into no row of a batch waits for the next one, whose rows it fills first. A batch is full when
`waiting` examples wait. What goes where depends on the order of the conversations alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain

from perception_r1_jax.data.errors import DataError, DroppedProblem
from perception_r1_jax.data.pipeline import Batches, Item, prepared_items, read_ahead
from perception_r1_jax.processing import Row, first_fit, pack_rows
from perception_r1_jax.records import Conversation, Example, PackedBatch

MOST_DROPPED = 10_000
"""Conversations dropped one after the other that end a run, where an epoch has more."""

Waiting = list[tuple[int, Example]]
"""Examples with their positions in the stream."""


def make_batches(
    conversations: Sequence[Conversation],
    prepare: Callable[[Conversation], Example],
    *,
    rows: int,
    tokens: int,
    windows: int,
    waiting: int,
    patch_size: int,
    pad_id: int,
    seed: int,
    shuffle: bool = True,
    epochs: int | None = None,
    prefetch: int = 0,
) -> PackedBatches:
    """An iterator of packed batches, whose position can be saved and restored.

    Args:
        conversations: the data set; also at a restore, where it must be the same.
        prepare: makes an example, pictures decoded. Called from threads; raises `DroppedProblem` for a conversation
            that cannot be used, one above the room of a row included.
        rows: rows of a batch.
        tokens: room of a row.
        windows: room of a row.
        waiting: a batch is full when so many examples found no room.
        patch_size: numbers P in a flattened patch; 0 for a text-only model.
        pad_id: fills rows after their last example.
        seed: of the shuffle; epoch e has an order of its own.
        shuffle: false keeps the order of the data in every epoch.
        epochs: passes over the data, the last batch of which may have empty rows; None for no end.
        prefetch: conversations prepared ahead; 0 prepares each when it is needed.
    """
    items = prepared_items(conversations, prepare, seed=seed, shuffle=shuffle, epochs=epochs)
    room = {"tokens": tokens, "windows": windows}
    return PackedBatches(
        items,
        prefetch,
        epoch=len(conversations),
        waiting=waiting,
        new_rows=lambda: [Row(**room) for _ in range(rows)],
        pack=lambda filled: pack_rows(filled, **room, patch_size=patch_size, pad_id=pad_id),
    )


class PackedBatches(Batches):
    """Packed batches. Their state has the positions of the examples that wait, which are prepared anew at a restore."""

    def __init__(
        self,
        items: grain.MapDataset[Item],
        prefetch: int,
        *,
        epoch: int,
        waiting: int,
        new_rows: Callable[[], list[Row]],
        pack: Callable[[list[list[Example]]], PackedBatch],
    ) -> None:
        super().__init__(read_ahead(items, prefetch))
        self._items, self._epoch, self._room_to_wait = items, epoch, waiting
        self._new_rows, self._pack = new_rows, pack
        self._taken = 0
        self._waiting: Waiting = []

    def __next__(self) -> PackedBatch:
        rows, before, self._waiting = self._new_rows(), self._waiting, []
        for position, example in itertools.chain(before, self._examples()):
            if not first_fit(example, rows):
                self._waiting.append((position, example))
            if len(self._waiting) == self._room_to_wait:
                break
        if not rows[0].examples:
            raise StopIteration
        return self._pack([row.examples for row in rows])

    def _examples(self) -> Iterator[tuple[int, Example]]:
        """The stream, without what is dropped, until it ends."""
        dropped = 0
        for _, example in self._parent:
            self._taken += 1
            if isinstance(example, DroppedProblem):
                self.drop(example)
                dropped += 1
                self._check_any(dropped)
            else:
                dropped = 0
                yield self._taken - 1, example

    def _check_any(self, dropped: int) -> None:
        if dropped >= min(self._epoch, MOST_DROPPED):
            raise DataError(f"No conversation fits: {self.drops()}. Raise the limits, or add data.")

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch, as plain JSON values."""
        return {**super().get_state(), "taken": self._taken, "waiting": [position for position, _ in self._waiting]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a saved position: the batches that follow are those that followed it."""
        super().set_state(state)
        self._taken = state["taken"]
        self._waiting = [(position, self._items[position][1]) for position in state["waiting"]]
