"""Cutting a batch by length: nothing is lost, nothing is cut off, and what is needed comes first."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.grpo.micro_batches import cut_batch
from tests import tiny
from tests.grpo_fixtures import run_config

LENGTHS = [24, 12, 30, 16, 9, 31]
TOKENS = np.array([[1, 8, 2, 5], [3, 3, 3, 3], [8, 7, 6, 1], [2, 1, 1, 2], [4, 8, 8, 1], [3, 1, 2, 2]])


def prompts():
    return tiny.prompt_batch(LENGTHS, [1, 0, 1, 0, 0, 1], length=32, windows=2)


def mask_of(tokens):
    return np.arange(8) < np.asarray(tokens)[..., None]


def config(rows, samples):
    return run_config(grpo__micro_batch_prompts=rows, grpo__micro_batch_samples=samples)


def cut(rows, samples, tokens=TOKENS):
    return cut_batch(prompts(), mask_of(tokens), config(rows, samples))


def test_by_hand():
    """Buckets of tokens 3, 6, 8 and of prompts 16, 24, 32; prompts 1, 3 and 5 have short responses."""
    micro_batches = cut(3, 4)
    assert [one.prompts.tolist() for one in micro_batches] == [[1, 3, 5], [4, 0, 2]]
    assert [(one.length, one.windows, one.tokens) for one in micro_batches] == [(32, 1, 3), (32, 1, 8)]


def test_a_group_that_is_too_long_is_split_by_length():
    """Rows have room for two responses of eight tokens; the groups of prompts 1, 3 and 5 take three tokens at most."""
    rows = {(one.prompts.item(), *one.samples[0].tolist()): one.tokens for one in cut(1, 2)}
    assert rows == {
        (0, 1, 3): 8, (0, 2, 0): 3, (2, 0, 1): 8, (2, 2, 3): 6, (4, 1, 2): 8, (4, 0, 3): 6,
        (1, 0, 1, 2, 3): 3, (3, 0, 3, 1, 2): 3, (5, 0, 2, 3, 1): 3,
    }  # fmt: skip


def test_a_row_is_as_wide_as_short_responses_leave_room():
    """Rows for 2 responses of 40 tokens, and for more of those whose bucket is smaller."""
    lengths = np.array([3, 10, 11, 20, 21, 40])
    mask = np.broadcast_to(np.arange(40) < lengths[:, None, None], (6, 8, 40))
    fields = {"rollout__response_buckets": (5, 10, 20, 40), "grpo__micro_batch_prompts": 1}
    micro_batches = cut_batch(prompts(), mask, run_config(**fields, grpo__micro_batch_samples=2))
    assert {(one.prompts.item(), one.tokens, one.samples.shape[1]) for one in micro_batches} == {
        (0, 5, 8), (1, 10, 8), (2, 20, 4), (3, 20, 4), (4, 40, 2), (5, 40, 2)
    }  # fmt: skip
    assert len(micro_batches) == 1 + 1 + 2 + 2 + 4 + 4


def test_a_long_response_does_not_keep_the_others_of_its_group_apart():
    lengths = np.array([3, 40, 3, 3, 12, 3, 3, 3])
    mask = np.broadcast_to(np.arange(40) < lengths[:, None], (6, 8, 40))
    fields = {"rollout__response_buckets": (5, 10, 20, 40), "grpo__micro_batch_prompts": 1}
    micro_batches = cut_batch(prompts(), mask, run_config(**fields, grpo__micro_batch_samples=1))
    rows = {(one.tokens, *one.samples[0].tolist()) for one in micro_batches if one.prompts.item() == 0}
    assert rows == {(40, 1), (20, 4, 0), (5, 2, 3, 5, 6), (5, 7)}


def test_rows_of_a_micro_batch_are_equally_wide():
    """The only row of eight is split, since two make a micro-batch."""
    lengths = np.array([3, 10, 11, 20, 21, 40])
    mask = np.broadcast_to(np.arange(40) < lengths[:, None, None], (6, 8, 40))
    fields = {"rollout__response_buckets": (5, 10, 20, 40), "grpo__micro_batch_prompts": 2}
    micro_batches = cut_batch(prompts(), mask, run_config(**fields, grpo__micro_batch_samples=1))
    assert {(prompt, one.samples.shape[1]) for one in micro_batches for prompt in one.prompts.tolist()} == {
        (0, 4), (1, 4), (2, 2), (3, 2), (4, 1), (5, 1)
    }  # fmt: skip
    assert {one.samples.shape[0] for one in micro_batches} == {2}


@pytest.mark.parametrize(("rows", "samples"), [(1, 1), (2, 2), (3, 1), (6, 4), (1, 4)])
def test_every_response_comes_once_and_whole(rows, samples):
    mask, seen = mask_of(TOKENS), np.zeros((6, 4), int)
    numbers = np.arange(mask.size).reshape(mask.shape)
    for one in cut(rows, samples):
        taken, own = one.take_responses((numbers, mask))
        np.testing.assert_array_equal(own.sum(-1), TOKENS[one.responses])
        np.testing.assert_array_equal(taken[..., 0], numbers[one.responses][..., 0])
        seen[one.responses] += 1
        batch = one.take_prompts(prompts())
        assert batch.tokens.shape == (rows, one.length)
        assert batch.patches.shape[:2] == (rows, one.windows)
        assert (batch.lengths <= one.length).all()
        assert ((batch.image_ids >= 0).sum(1) == (prompts().image_ids[one.prompts] >= 0).sum(1)).all()
    assert (seen == 1).all()


def test_less_is_padding_than_in_one_bucket():
    computed = sum(one.prompts.size * (one.length + 4 * one.tokens) for one in cut(1, 4))
    assert computed == 2 * (16 + 12) + (32 + 12) + (16 + 32) + (24 + 32) + (32 + 32)
    assert computed < 6 * (32 + 4 * 8)


def test_what_is_not_needed_is_left_out_or_fills_up():
    needed = np.zeros((6, 4), bool)
    needed[[0, 3, 4], 1] = True
    micro_batches = cut(2, 4, TOKENS * needed)
    assert len(micro_batches) == 2
    assert {0, 3, 4} < set(np.concatenate([one.prompts for one in micro_batches]).tolist())
    assert [one.tokens for one in micro_batches] == [8, 8]  # response 1 of prompt 3 has one token, of the others eight
    (one,) = cut(2, 4, np.zeros((6, 4)))
    assert one.tokens == 3


def test_the_batch_may_be_wider_or_narrower_than_the_buckets():
    tokens = np.minimum(TOKENS, 7)
    mask = mask_of(tokens)[:, :, :7]
    micro_batches = cut_batch(prompts(), mask, config(6, 4))
    assert [one.tokens for one in micro_batches] == [7]


@pytest.mark.parametrize(("rows", "samples", "named"), [(4, 4, "micro_batch_prompts is 4"), (2, 3, "samples is 3")])
def test_sizes_that_do_not_divide_are_an_error_that_names_those_that_do(rows, samples, named):
    with pytest.raises(UserError, match=f"{named}, which does not divide"):
        cut(rows, samples)
