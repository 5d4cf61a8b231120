"""Splitting a batch and joining it again."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.grpo.micro_batches import MicroBatches


def test_every_micro_batch_takes_rows_from_the_whole_batch():
    # 4 prompts x 4 responses, numbered prompt * 10 + response, in micro-batches of 2 x 2
    numbers = jnp.arange(4)[:, None] * 10 + jnp.arange(4)[None]
    split = MicroBatches(2, 2).split_responses(numbers)
    assert split.shape == (2, 2, 2, 2)
    np.testing.assert_array_equal(split[0, 0], [[0, 2], [20, 22]])
    np.testing.assert_array_equal(split[1, 0], [[10, 12], [30, 32]])
    np.testing.assert_array_equal(MicroBatches(2, 2).split_prompts(numbers)[1, :, 0], [10, 30])


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (6, 2), (3, 6)])
def test_joining_undoes_splitting(sizes):
    batch = np.random.default_rng(0).normal(size=(6, 6, 5)).astype(np.float32)
    micro_batches = MicroBatches(*sizes)
    np.testing.assert_array_equal(micro_batches.join_responses(micro_batches.split_responses(batch)), batch)


def test_a_batch_that_does_not_divide_is_an_error_with_the_sizes_that_do():
    with pytest.raises(ValueError, match=r"micro_batch_samples is 4, which does not divide 6.* 2 and 3"):
        MicroBatches(1, 4).split_responses(np.zeros((2, 6)))
