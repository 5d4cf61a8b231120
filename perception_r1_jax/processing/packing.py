"""Conversations packed into rows of a fixed number of tokens and windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from perception_r1_jax.records import WINDOW_PATCHES, WINDOW_TOKENS, Example, PackedBatch


@dataclasses.dataclass
class Row:
    """A row being filled.

    Attributes:
        tokens, windows: what is left of it.
        examples: what it holds, in order.
    """

    tokens: int
    windows: int
    examples: list[Example] = dataclasses.field(default_factory=list)

    def add(self, example: Example) -> bool:
        """Puts the example at the row's end where it fits, and says whether it did."""
        tokens, windows = len(example.tokens), len(example.vision.image_ids)
        if tokens > self.tokens or windows > self.windows:
            return False
        self.tokens, self.windows = self.tokens - tokens, self.windows - windows
        self.examples.append(example)
        return True


def first_fit(example: Example, rows: Sequence[Row]) -> bool:
    """Puts the example into the first row that has room for it, and says whether there was one."""
    return any(row.add(example) for row in rows)


def pack_rows(
    rows: Sequence[Sequence[Example]], *, tokens: int, windows: int, patch_size: int, pad_id: int
) -> PackedBatch:
    """Lays the examples of each row out one after the other, padding at the end.

    Args:
        rows: what each holds, none of them above its room.
        tokens: room of a row.
        windows: room of a row.
        patch_size: numbers P in a flattened patch; 0 for a text-only model.
        pad_id: fills rows after their last example.
    """
    batch = _empty(len(rows), tokens, windows, patch_size, pad_id)
    for row, examples in enumerate(rows):
        token, window, picture = 0, 0, 0
        for segment, example in enumerate(examples):
            _place_tokens(batch, row, token, segment, example, first_slot=window * WINDOW_TOKENS)
            _place_windows(batch, row, window, example, first_picture=picture)
            token, window = token + len(example.tokens), window + len(example.vision.image_ids)
            picture += int(example.vision.image_ids.max(initial=-1)) + 1
    return batch


def _empty(rows: int, tokens: int, windows: int, patch_size: int, pad_id: int) -> PackedBatch:
    return PackedBatch(
        tokens=np.full((rows, tokens), pad_id, np.int32),
        segment_ids=np.full((rows, tokens), -1, np.int32),
        positions=np.zeros((rows, 3, tokens), np.int32),
        image_slots=np.full((rows, tokens), -1, np.int32),
        loss_mask=np.zeros((rows, tokens), bool),
        patches=np.zeros((rows, windows, WINDOW_PATCHES, patch_size), np.float32),
        patch_positions=np.zeros((rows, windows, WINDOW_PATCHES, 2), np.int32),
        patch_valid=np.zeros((rows, windows, WINDOW_PATCHES), bool),
        image_ids=np.full((rows, windows), -1, np.int32),
    )


def _place_tokens(batch: PackedBatch, row: int, start: int, segment: int, example: Example, *, first_slot: int) -> None:
    place = slice(start, start + len(example.tokens))
    batch.tokens[row, place] = example.tokens
    batch.segment_ids[row, place] = segment
    batch.positions[row, :, place] = example.positions
    batch.image_slots[row, place] = np.where(example.image_slots < 0, -1, example.image_slots + first_slot)
    batch.loss_mask[row, place] = example.loss_mask


def _place_windows(batch: PackedBatch, row: int, start: int, example: Example, *, first_picture: int) -> None:
    vision = example.vision
    place = slice(start, start + len(vision.image_ids))
    batch.patches[row, place] = vision.patches
    batch.patch_positions[row, place] = vision.patch_positions
    batch.patch_valid[row, place] = vision.patch_valid
    batch.image_ids[row, place] = vision.image_ids + first_picture
