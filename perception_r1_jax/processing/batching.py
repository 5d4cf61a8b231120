"""Prompts padded and stacked to a bucket of static shape, so that programs compile once per bucket."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from perception_r1_jax.records import WINDOW_PATCHES, Prompt, PromptBatch


def batch_prompts(prompts: Sequence[Prompt], *, rows: int, length: int, windows: int, pad_id: int) -> PromptBatch:
    """Pads prompts to a bucket of `rows` x `length` tokens and `windows` windows.

    Rows after the last prompt only fill the batch: length 0, pad ids, no valid patch.

    Raises:
        ValueError: no prompt at all, more prompts than rows, or a prompt that the bucket cannot hold (named).
    """
    if not 0 < len(prompts) <= rows:
        raise ValueError(f"{len(prompts)} prompts for a batch of {rows} rows.")
    for prompt in prompts:
        _check_fits(prompt, length, windows)
    batch = _empty(rows, length, windows, prompts[0].vision.patches.shape[-1], pad_id)
    for row, prompt in enumerate(prompts):
        _fill(batch, row, prompt)
    return batch


def narrow(batch: PromptBatch, length: int, windows: int) -> PromptBatch:
    """The same prompts in a smaller bucket, which must hold them."""
    return dataclasses.replace(
        batch,
        tokens=batch.tokens[:, :length],
        positions=batch.positions[:, :, :length],
        image_slots=batch.image_slots[:, :length],
        patches=batch.patches[:, :windows],
        patch_positions=batch.patch_positions[:, :windows],
        patch_valid=batch.patch_valid[:, :windows],
        image_ids=batch.image_ids[:, :windows],
    )


def pick_bucket(size: int, buckets: Sequence[int], name: str) -> int:
    """The smallest bucket that holds `size`.

    Raises:
        ValueError: none does; the message names what `name` says.
    """
    fitting = [bucket for bucket in buckets if bucket >= size]
    if not fitting:
        raise ValueError(
            f"{name}: size {size} is above the largest bucket {max(buckets)}; add a bucket or lower the limit."
        )
    return min(fitting)


def pick_buckets(
    prompts: Sequence[Prompt], length_buckets: Sequence[int], window_buckets: Sequence[int]
) -> tuple[int, int]:
    """The smallest (length, windows) buckets that hold all prompts. Raises `ValueError` naming the largest prompt."""
    longest = max(prompts, key=lambda prompt: len(prompt.tokens))
    widest = max(prompts, key=lambda prompt: len(prompt.vision.image_ids))
    return (
        pick_bucket(len(longest.tokens), length_buckets, f"prompt {longest.problem.problem_id!r} (tokens)"),
        pick_bucket(len(widest.vision.image_ids), window_buckets, f"prompt {widest.problem.problem_id!r} (windows)"),
    )


def bucket_size(size: int, limit: int | None = None, *, smallest: int = 64, finer: int = 1) -> int:
    """`size` rounded up to a power of two or three quarters of one, so at most a third is padding.

    Args:
        size: at least 1.
        limit: the largest bucket; None for no limit.
        smallest: the smallest bucket.
        finer: so many times as many buckets, and about as much less padding.
    """
    power = 1 << (size - 1).bit_length()
    grain = max(power // (4 * finer), 1)
    bucket = max(-(-size // grain) * grain, smallest)
    return bucket if limit is None else min(bucket, limit)


def own_bucket(prompt: Prompt) -> tuple[int, int]:
    """A (length, windows) bucket for a prompt among others of unknown size."""
    return bucket_size(len(prompt.tokens)), window_bucket(prompt)


def window_bucket(prompt: Prompt) -> int:
    """Of such a bucket the windows; 0 where the prompt has no picture."""
    windows = len(prompt.vision.image_ids)
    return bucket_size(windows, smallest=4) if windows else 0


def prompt_hash(problem_id: str) -> int:
    """A number below 2**32 that depends on the problem's id alone, the same in every process and run."""
    return zlib.crc32(problem_id.encode("utf-8", "surrogatepass"))


def _check_fits(prompt: Prompt, length: int, windows: int) -> None:
    tokens, needed = len(prompt.tokens), len(prompt.vision.image_ids)
    if tokens > length or needed > windows:
        raise ValueError(
            f"prompt {prompt.problem.problem_id!r} has {tokens} tokens and {needed} windows, "
            f"above the bucket of {length} tokens and {windows} windows."
        )


def _empty(rows: int, length: int, windows: int, patch_size: int, pad_id: int) -> PromptBatch:
    return PromptBatch(
        tokens=np.full((rows, length), pad_id, np.int32),
        lengths=np.zeros(rows, np.int32),
        positions=np.zeros((rows, 3, length), np.int32),
        next_position=np.zeros(rows, np.int32),
        image_slots=np.full((rows, length), -1, np.int32),
        prompt_ids=np.zeros(rows, np.uint32),
        patches=np.zeros((rows, windows, WINDOW_PATCHES, patch_size), np.float32),
        patch_positions=np.zeros((rows, windows, WINDOW_PATCHES, 2), np.int32),
        patch_valid=np.zeros((rows, windows, WINDOW_PATCHES), bool),
        image_ids=np.full((rows, windows), -1, np.int32),
    )


def _fill(batch: PromptBatch, row: int, prompt: Prompt) -> None:
    tokens, windows = len(prompt.tokens), len(prompt.vision.image_ids)
    batch.tokens[row, :tokens] = prompt.tokens
    batch.lengths[row] = tokens
    batch.positions[row, :, :tokens] = prompt.positions
    batch.next_position[row] = prompt.next_position
    batch.image_slots[row, :tokens] = prompt.image_slots
    batch.prompt_ids[row] = prompt_hash(prompt.problem.problem_id)
    batch.patches[row, :windows] = prompt.vision.patches
    batch.patch_positions[row, :windows] = prompt.vision.patch_positions
    batch.patch_valid[row, :windows] = prompt.vision.patch_valid
    batch.image_ids[row, :windows] = prompt.vision.image_ids
