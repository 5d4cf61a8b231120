"""M-RoPE positions (Qwen2-VL, arXiv 2409.12191, section 2.1) of a prompt, on the host in numpy."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int

from perception_r1_jax.records import MERGE_UNIT

_MERGE_SIDE = math.isqrt(MERGE_UNIT)


def rope_positions(
    tokens: Int[np.ndarray, " L"], grids: Int[np.ndarray, "pictures 3"], *, image_token_id: int, video_token_id: int
) -> tuple[Int[np.ndarray, "3 L"], int]:
    """Positions int32 (temporal, height, width) of one unpadded prompt, and the next position.

    Text counts up on all three axes alike. A picture stays at one temporal position and counts rows and
    columns of its image tokens from there; the text after it goes on from the longer side. With a picture of 2 x 3
    image tokens between two words:

        token      a  i  i  i  i  i  i  b
        temporal   0  1  1  1  1  1  1  4
        height     0  1  1  1  2  2  2  4
        width      0  1  2  3  1  2  3  4      next position 5

    Padding has no part in this, on either side: a padded row holds these positions at its real tokens.

    Args:
        tokens: ids of the prompt.
        grids: frames, rows and columns of patches of the pictures, in the order of the prompt.
        image_token_id: id of the image-pad token; -1, which no token has, for a text-only model.
        video_token_id: id of the video-pad token, likewise.

    Raises:
        ValueError: a video token, or image tokens that do not match the grids.
    """
    sides = grids[:, 1:] // _MERGE_SIDE
    places = np.flatnonzero(tokens == image_token_id)
    _check(tokens, len(places), sides, video_token_id)
    done, position, pieces = 0, 0, []
    for rows, columns in sides.tolist():
        start, places = int(places[0]), places[rows * columns :]
        pieces += [_text(position, start - done), _picture(position + start - done, rows, columns)]
        position += start - done + max(rows, columns)
        done = start + rows * columns
    pieces.append(_text(position, len(tokens) - done))
    return np.concatenate(pieces, axis=1), position + len(tokens) - done


def _check(tokens: np.ndarray, image_tokens: int, sides: np.ndarray, video_token_id: int) -> None:
    if (tokens == video_token_id).any():
        raise ValueError(f"token {np.argmax(tokens == video_token_id)} is a video token: video input is not supported.")
    features = sides.prod(axis=1)
    if image_tokens != features.sum():
        raise ValueError(f"{image_tokens} image tokens do not match the {features.tolist()} features of the pictures.")


def _text(start: int, length: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + length, dtype=np.int32), (3, length))


def _picture(start: int, rows: int, columns: int) -> np.ndarray:
    row, column = np.divmod(np.arange(rows * columns, dtype=np.int32), np.int32(columns))
    return np.stack([np.zeros_like(row), row, column]) + np.int32(start)
