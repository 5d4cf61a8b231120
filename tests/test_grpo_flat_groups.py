"""Where flat groups come to stand; tests/test_grpo_step.py shows that they are left out and change nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.grpo.flat_groups import flat_last, scan_live
from perception_r1_jax.grpo.micro_batches import MicroBatches


def test_order_by_hand():
    # 6 groups in micro-batches of 2; rows 0 and 3 are the first, 1 and 4 the second, 2 and 5 the third
    flat = np.array([True, False, True, False, False, True])
    np.testing.assert_array_equal(flat_last(flat, 1, 2), [1, 4, 2, 3, 0, 5])


@pytest.mark.parametrize(("updates", "chunk"), [(1, 1), (1, 4), (2, 3), (4, 6), (12, 2)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_as_few_micro_batches_as_can_be_have_a_group_that_is_not_flat(updates, chunk, share):
    flat = np.random.default_rng(0).random(24) < share
    order = flat_last(flat, updates, chunk)
    np.testing.assert_array_equal(np.sort(order), np.arange(24))
    for rows in np.split(order, updates):
        split = np.asarray(jax.tree.leaves(MicroBatches(chunk, 1).split_prompts(jnp.asarray(~flat[rows])))[0])
        signals = int((~flat[rows]).sum())
        assert split.any(axis=1).sum() == -(-signals // chunk)
        assert abs(signals - (~flat).sum() / updates) < 1


@pytest.mark.parametrize("live", [[True] * 4, [False, True, False, True], [False] * 4])
def test_a_scan_over_live_elements_visits_no_other(live):
    xs, live = jnp.where(jnp.asarray(live), jnp.arange(1.0, 5.0), jnp.nan), jnp.asarray(live)
    total, outputs = jax.jit(lambda xs: scan_live(lambda c, x: (c + x, {"twice": 2 * x}), jnp.float32(0), xs, live))(xs)
    assert float(total) == np.arange(1, 5)[np.asarray(live)].sum()
    np.testing.assert_array_equal(outputs["twice"], np.where(np.asarray(live), 2 * np.arange(1, 5), 0))
