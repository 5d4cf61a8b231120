"""Buckets and padding: what a row holds depends on its prompt alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from perception_r1_jax.processing.batching import (
    batch_prompts,
    bucket_size,
    own_bucket,
    pick_bucket,
    pick_buckets,
    prompt_hash,
)
from perception_r1_jax.processing.layout import image_tokens, lay_out_patches
from perception_r1_jax.processing.positions import rope_positions
from perception_r1_jax.records import Problem, Prompt

IMAGE, PAD = 90, 99


def make_prompt(name: str, grids: list[tuple[int, int]], text: int) -> Prompt:
    """A prompt with the pictures first, random pixels, and `text` text tokens."""
    thw = np.array([(1, *grid) for grid in grids], np.int64).reshape(-1, 3)
    rng = np.random.default_rng(prompt_hash(name))
    tokens = np.array([*[IMAGE] * image_tokens(thw).sum(), *rng.integers(1, 80, text)], np.int32)
    vision = lay_out_patches(rng.normal(size=(thw.prod(axis=1).sum(), 12)).astype(np.float32), thw)
    positions, next_position = rope_positions(tokens, thw, image_token_id=IMAGE, video_token_id=-1)
    slots = np.full(len(tokens), -1, np.int32)
    slots[tokens == IMAGE] = vision.token_slots
    return Prompt(Problem(name, "", (), ""), tokens, positions, next_position, slots, vision)


PROMPTS = [
    make_prompt("text", [], 7),
    make_prompt("two", [(10, 18), (6, 4)], 3),
    make_prompt("one", [(8, 8)], 5),
]


def batch(prompts, rows=4, length=64, windows=8):
    return batch_prompts(prompts, rows=rows, length=length, windows=windows, pad_id=PAD)


def rows_of(stacked, row: int) -> dict[str, np.ndarray]:
    return {field.name: getattr(stacked, field.name)[row] for field in dataclasses.fields(stacked)}


def test_rows_hold_their_prompts():
    stacked = batch(PROMPTS)
    assert stacked.lengths.tolist() == [7, 45 + 6 + 3, 16 + 5, 0]
    for row, prompt in enumerate(PROMPTS):
        length, windows = len(prompt.tokens), len(prompt.vision.image_ids)
        np.testing.assert_array_equal(stacked.tokens[row, :length], prompt.tokens)
        np.testing.assert_array_equal(stacked.positions[row, :, :length], prompt.positions)
        assert (stacked.tokens[row, length:] == PAD).all()
        assert stacked.next_position[row] == prompt.next_position
        np.testing.assert_array_equal(stacked.patches[row, :windows], prompt.vision.patches)
        assert not stacked.patch_valid[row, windows:].any()
        assert (stacked.image_ids[row, windows:] == -1).all()
    assert stacked.image_ids[1].tolist() == [0] * 6 + [1] + [-1]


def test_every_image_slot_points_at_real_patches_of_its_row():
    stacked = batch(PROMPTS)
    for row in range(len(stacked.tokens)):
        slots = stacked.image_slots[row][stacked.tokens[row] == IMAGE]
        assert stacked.patch_valid[row].reshape(-1, 4)[slots].all()
        assert stacked.patch_valid[row].sum() == 4 * len(slots) == 4 * len(set(slots.tolist()))
        assert (stacked.image_slots[row][stacked.tokens[row] != IMAGE] == -1).all()


def test_filler_rows_are_empty():
    filler = rows_of(batch(PROMPTS), 3)
    assert filler["lengths"] == 0
    assert (filler["tokens"] == PAD).all()
    assert (filler["image_ids"] == -1).all()
    assert not filler["patch_valid"].any()
    assert not filler["patches"].any()


def test_order_does_not_change_a_row():
    forward, backward = batch(PROMPTS), batch(PROMPTS[::-1])
    for row in range(3):
        for name, array in rows_of(forward, row).items():
            np.testing.assert_array_equal(array, rows_of(backward, 2 - row)[name], err_msg=name)


def test_a_larger_bucket_only_adds_padding():
    small, large = batch(PROMPTS, rows=3, length=54, windows=7), batch(PROMPTS, rows=5, length=80, windows=11)
    assert (large.tokens[:3, 54:] == PAD).all()
    for name in ("tokens", "image_slots"):
        np.testing.assert_array_equal(getattr(large, name)[:3, :54], getattr(small, name))
    np.testing.assert_array_equal(large.positions[:3, :, :54], small.positions)
    for name in ("patches", "patch_positions", "patch_valid", "image_ids"):
        np.testing.assert_array_equal(getattr(large, name)[:3, :7], getattr(small, name))
        np.testing.assert_array_equal(getattr(large, name)[:, 7:] != (-1 if name == "image_ids" else 0), False)


def test_text_only_rows_may_have_no_windows_at_all():
    assert batch(PROMPTS[:1], rows=1, windows=0).patches.shape == (1, 0, 64, 12)


def test_prompt_ids_are_stable_and_distinct():
    assert prompt_hash("geometry3k/8") == 626706290
    assert len(set(batch(PROMPTS).prompt_ids.tolist())) == 4
    assert batch(PROMPTS).prompt_ids.dtype == np.uint32


def test_buckets_are_the_smallest_that_hold_all():
    assert pick_bucket(65, [256, 64, 128], "p") == 128
    assert pick_bucket(64, [256, 64, 128], "p") == 64
    assert pick_buckets(PROMPTS, [32, 64, 128], [0, 4, 8]) == (64, 8)
    assert pick_buckets(PROMPTS[:1], [32, 64, 128], [0, 4, 8]) == (32, 0)


@pytest.mark.parametrize(
    ("lengths", "windows", "message"),
    [([32], [8], r"prompt 'two' \(tokens\): size 54"), ([64], [4], r"prompt 'two' \(windows\): size 7")],
)
def test_a_prompt_above_every_bucket_is_named(lengths, windows, message):
    with pytest.raises(ValueError, match=message):
        pick_buckets(PROMPTS, lengths, windows)


def test_a_prompt_that_its_bucket_cannot_hold_is_named():
    with pytest.raises(ValueError, match="prompt 'two' has 54 tokens and 7 windows"):
        batch(PROMPTS, windows=6)
    with pytest.raises(ValueError, match="3 prompts for a batch of 2 rows"):
        batch(PROMPTS, rows=2)


def test_sizes_without_a_list_of_buckets_go_to_few_that_waste_little():
    sizes = range(1, 4097)
    buckets = [bucket_size(size, 4096) for size in sizes]
    assert all(size <= bucket for size, bucket in zip(sizes, buckets))
    assert all(bucket <= 1.5 * size for size, bucket in zip(sizes, buckets) if size > 64)
    assert sorted(set(buckets)) == [64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
    assert bucket_size(900, 1000) == 1000
    assert bucket_size(5000) == 6144
    assert [bucket_size(size, smallest=4) for size in (1, 4, 5, 6, 7, 9, 17)] == [4, 4, 6, 6, 8, 12, 24]


def test_a_prompt_s_own_bucket_holds_it():
    assert [own_bucket(prompt) for prompt in PROMPTS] == [(64, 0), (64, 8), (64, 4)]
    for prompt in PROMPTS:
        length, windows = own_bucket(prompt)
        batch([prompt], length=length, windows=windows)
