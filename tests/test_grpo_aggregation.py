"""The weights of tokens, by hand; tests/test_grpo_losses.py has the losses that they make."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.grpo.aggregation import token_weights


def test_weights_by_hand():
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_allclose(token_weights(mask, "sequence_mean")[:, 0], [1 / 4, 1 / 8, 0])
    np.testing.assert_allclose(token_weights(mask, "token_mean")[:, 0], [1 / 6, 1 / 6, 0])
    np.testing.assert_allclose(token_weights(mask, "constant", max_tokens=10)[:, 0], [1 / 20, 1 / 20, 0])
    nine = np.concatenate([np.ones((8, 4), bool), mask[:1]])  # a run of 32 tokens and one of 2
    np.testing.assert_allclose(token_weights(nine, "micro_batch_mean")[[0, 8], 0], [1 / 64, 1 / 4])


def test_an_unknown_name_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="'seq_mean' is unknown; choose one of sequence_mean, token_mean"):
        token_weights(np.ones((1, 1), bool), "seq_mean")
