"""The `VisionLayout` of a prompt: flattened patches put into the windows that the vision tower attends in.

The Hugging Face image processor lists the patches of a picture by 2 x 2 merge units, units in raster order.
A window is 4 x 4 units; windows tile a picture's units from the upper left. A picture of 3 x 6 units:

    units, in the order of the prompt      window        place in its window
     0  1  2  3  4  5                      0 0 0 0 1 1    0  1  2  3  0  1
     6  7  8  9 10 11                      0 0 0 0 1 1    4  5  6  7  2  3
    12 13 14 15 16 17                      0 0 0 0 1 1    8  9 10 11  4  5
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

from perception_r1_jax.records import MERGE_UNIT, WINDOW_PATCHES, WINDOW_TOKENS, VisionLayout

_MERGE_SIDE = math.isqrt(MERGE_UNIT)
_WINDOW_SIDE = math.isqrt(WINDOW_TOKENS)


def lay_out_patches(pixel_values: Float[np.ndarray, "patches P"], grids: Int[np.ndarray, "pictures 3"]) -> VisionLayout:
    """Lays the pictures of one prompt out window by window.

    Args:
        pixel_values: float32, the patches of all pictures as the image processor lists them.
        grids: frames, rows and columns of patches of each picture; of no picture for a text-only prompt.

    Raises:
        ValueError: more than one frame (video), a side that is no multiple of the merge unit's, or a
            number of patches other than the grids say.
    """
    _check(pixel_values, grids)
    slots, positions, image_ids = [np.zeros(0, np.int32)], [np.zeros((0, MERGE_UNIT, 2), np.int32)], []
    for image, (_, rows, columns) in enumerate(grids.tolist()):
        unit_rows, unit_columns = rows // _MERGE_SIDE, columns // _MERGE_SIDE
        slots.append(len(image_ids) * WINDOW_TOKENS + _window_slots(unit_rows, unit_columns))
        positions.append(_patch_positions(unit_rows, unit_columns))
        image_ids += [image] * _windows(unit_rows, unit_columns)
    token_slots = np.concatenate(slots)
    patches = pixel_values.reshape(len(token_slots), MERGE_UNIT, pixel_values.shape[1])
    return VisionLayout(
        patches=_place(patches, token_slots, len(image_ids)),
        patch_positions=_place(np.concatenate(positions), token_slots, len(image_ids)),
        patch_valid=_place(np.ones((len(token_slots), MERGE_UNIT), bool), token_slots, len(image_ids)),
        image_ids=np.array(image_ids, np.int32),
        token_slots=token_slots,
    )


def image_tokens(grids: Int[np.ndarray, "pictures 3"]) -> Int[np.ndarray, " pictures"]:
    """Image tokens that pictures with these grids of patches take in a prompt."""
    return grids.prod(axis=1) // MERGE_UNIT


def count_windows(grids: Int[np.ndarray, "pictures 3"]) -> int:
    """Windows that pictures with these grids of patches take in a layout."""
    return sum(_windows(rows, columns) for _, rows, columns in (grids // (1, _MERGE_SIDE, _MERGE_SIDE)).tolist())


def _check(pixel_values: np.ndarray, grids: np.ndarray) -> None:
    if (grids[:, 0] != 1).any():
        raise ValueError(f"grids {grids.tolist()} have more than one frame: video input is not supported.")
    if (grids[:, 1:] % _MERGE_SIDE).any():
        raise ValueError(f"grids {grids.tolist()} have sides that are no multiple of {_MERGE_SIDE} patches.")
    if len(pixel_values) != grids.prod(axis=1).sum():
        raise ValueError(f"{len(pixel_values)} patches do not fill the grids {grids.tolist()}.")


def _windows(unit_rows: int, unit_columns: int) -> int:
    return math.ceil(unit_rows / _WINDOW_SIDE) * math.ceil(unit_columns / _WINDOW_SIDE)


def _window_slots(unit_rows: int, unit_columns: int) -> np.ndarray:
    """The slot int32 [K] of each unit of one picture, real units filling their window from the front."""
    row, column = np.divmod(np.arange(unit_rows * unit_columns, dtype=np.int32), np.int32(unit_columns))
    window_row, row = np.divmod(row, _WINDOW_SIDE)
    window_column, column = np.divmod(column, _WINDOW_SIDE)
    window = window_row * math.ceil(unit_columns / _WINDOW_SIDE) + window_column
    width = np.minimum(_WINDOW_SIDE, unit_columns - window_column * _WINDOW_SIDE)
    return window * WINDOW_TOKENS + row * width + column


def _patch_positions(unit_rows: int, unit_columns: int) -> np.ndarray:
    """Row and column int32 [K, 4, 2] of the four patches of each unit of one picture."""
    units = np.stack(np.divmod(np.arange(unit_rows * unit_columns, dtype=np.int32), np.int32(unit_columns)), axis=-1)
    within = np.stack(np.divmod(np.arange(MERGE_UNIT, dtype=np.int32), np.int32(_MERGE_SIDE)), axis=-1)
    return units[:, None] * _MERGE_SIDE + within


def _place(values: np.ndarray, slots: np.ndarray, windows: int) -> np.ndarray:
    """Values [K, 4, ...] of the units at their slots in [W, 64, ...], zeros elsewhere."""
    out = np.zeros((windows * WINDOW_TOKENS, *values.shape[1:]), values.dtype)
    out[slots] = values
    return out.reshape(windows, WINDOW_PATCHES, *values.shape[2:])
