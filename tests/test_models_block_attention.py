"""Rows behind keys that they share: nothing else than with these keys in front of each row's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.models.attention import attention
from perception_r1_jax.models.block_attention import PREFILL_BLOCK, attention_behind
from tests.naive import causal_mask

ROWS, HEADS, KV_HEADS, SIZE, SHARED = 3, 4, 2, 8, 11


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("length", [5, PREFILL_BLOCK, 2 * PREFILL_BLOCK + 5, 5 * PREFILL_BLOCK + 3])
def test_rows_of_any_length_attend_as_with_all_keys_in_front(length):
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, ROWS, length, heads, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS))
    shared = normal(rng, KV_HEADS, SHARED, SIZE), normal(rng, KV_HEADS, SHARED, SIZE)
    mask = causal_mask(jnp.arange(length)[None] < jnp.array([length, 0, length - 2])[:, None])
    joined = [
        jnp.concatenate([jnp.tile(jnp.swapaxes(before, 0, 1), (ROWS, 1, 1, 1)), own], axis=1)
        for before, own in zip(shared, (k, v))
    ]
    expected = attention(q, *joined, jnp.pad(mask, [(0, 0), (0, 0), (SHARED, 0)], constant_values=True))
    np.testing.assert_allclose(attention_behind(q, k, v, mask, shared), expected, atol=1e-6)


def test_the_largest_scores_decide_wherever_they_stand():
    """Scores of a thousand: shared and own keys are weighed by one maximum, or nothing finite comes of it."""
    one = jnp.ones((1, 1, 1, 1))
    for before, own, expected in ((1000.0, -1000.0, 2.0), (-1000.0, 1000.0, 3.0), (1000.0, 1000.0, 2.5)):
        shared = jnp.full((1, 1, 1), before), jnp.full((1, 1, 1), 2.0)
        out = attention_behind(one, own * one, 3 * one, jnp.ones((1, 1, 1), bool), shared)
        assert float(out.squeeze()) == expected


def test_numbers_that_are_broken_stay_in_their_row():
    rng = np.random.default_rng(1)
    q, k, v = (normal(rng, 2, 4, heads, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS))
    shared = normal(rng, KV_HEADS, SHARED, SIZE), normal(rng, KV_HEADS, SHARED, SIZE)
    out = attention_behind(q.at[0].set(jnp.nan), k, v, causal_mask(jnp.ones((2, 4), bool)), shared)
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()
