"""The loss of packed conversations: that packing, padding and chunks change nothing, and what it counts."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.grpo.log_probs import response_log_probs
from perception_r1_jax.models import compute_logits, embed_prompts, forward, packed_segments
from perception_r1_jax.processing import pack_rows
from perception_r1_jax.records import PackedBatch
from perception_r1_jax.sft.loss import summed_loss, summed_scores
from tests import tiny
from tests.grpo_fixtures import relative_difference
from tests.sft_fixtures import ROOM, apart, examples, packed


@functools.cache
def loss_and_gradient(chunk: int = 16, remat: str = "none"):
    def mean_loss(params, batch):
        return summed_loss(tiny.CONFIG, params, batch, chunk=chunk, remat=remat) / jnp.sum(
            batch.loss_mask, dtype=jnp.float32
        )

    return jax.jit(jax.value_and_grad(mean_loss))


def assert_same_loss_and_gradient(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    assert relative_difference(ours[1], theirs[1]) < 1e-5


def test_packed_is_one_conversation_a_row():
    params = tiny.params(4.0)
    assert_same_loss_and_gradient(loss_and_gradient()(params, packed()), loss_and_gradient()(params, apart()))


def test_the_order_within_a_row_and_the_row_change_nothing():
    a, b, c, d, e, f = examples()
    other = pack_rows([[c, a], [b, d], [b], [f, e]], **ROOM)
    params = tiny.params(4.0)
    assert_same_loss_and_gradient(loss_and_gradient()(params, other), loss_and_gradient()(params, packed()))


@pytest.mark.parametrize(("chunk", "remat"), [(7, "none"), (256, "full")])
def test_chunks_and_rematerialisation_change_nothing(chunk, remat):
    params = tiny.params(4.0)
    theirs = loss_and_gradient()(params, packed())
    assert_same_loss_and_gradient(loss_and_gradient(chunk, remat)(params, packed()), theirs)


def test_a_batch_without_responses_has_no_loss_and_no_gradient():
    batch = dataclasses.replace(packed(), loss_mask=np.zeros_like(packed().loss_mask))
    summed = jax.value_and_grad(lambda params: summed_loss(tiny.CONFIG, params, batch, chunk=16))
    loss, gradient = summed(tiny.params(4.0))
    assert loss == 0
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) == 0


def test_what_stands_in_padding_is_not_seen():
    batch, rng = packed(), np.random.default_rng(3)
    padding = batch.segment_ids < 0
    noise = rng.integers(0, 80, batch.tokens.shape).astype(np.int32)
    changed = dataclasses.replace(
        batch,
        tokens=np.where(padding, noise, batch.tokens),
        positions=np.where(padding[:, None], noise[:, None], batch.positions),
        patches=np.where((batch.image_ids < 0)[:, :, None, None], 5.0, batch.patches).astype(np.float32),
    )
    params = tiny.params(4.0)
    assert_same_loss_and_gradient(loss_and_gradient()(params, changed), loss_and_gradient()(params, batch))


def test_a_segment_sees_nothing_of_another():
    """The gradient of one segment's loss in the embeddings of the row is zero outside of it, and after each token."""
    batch = jax.tree.map(lambda x: x[:1], packed())
    embeddings = embed_prompts(tiny.CONFIG, tiny.params(4.0), batch)
    mask = packed_segments(batch.segment_ids)

    def of_token(x, token):
        return forward(tiny.CONFIG, tiny.params(4.0), x, batch.positions, mask)[0, token].sum()

    for token in (10, 30):
        felt = np.abs(jax.grad(of_token)(embeddings, token)).sum(axis=-1)[0] > 0
        same = (batch.segment_ids[0] == batch.segment_ids[0, token]) & (np.arange(felt.size) <= token)
        np.testing.assert_array_equal(felt, same)


def test_the_log_probs_are_those_of_grpo():
    """A response after its prompt, as the policy's training computes it."""
    prompts, (length, count) = tiny.prompt_batch([21], [1], windows=1), (21, 6)
    rng = np.random.default_rng(4)
    responses = rng.integers(0, 80, (1, 1, count)).astype(np.int32)
    logps, _ = response_log_probs(tiny.CONFIG, tiny.params(), prompts, responses, np.ones((1, 1, count), bool))
    after = np.asarray(prompts.next_position)[:, None, None] + np.zeros((1, 3, 1), np.int32) + np.arange(count)
    row = PackedBatch(
        tokens=np.concatenate([prompts.tokens[:, :length], responses[0]], axis=1),
        segment_ids=np.zeros((1, length + count), np.int32),
        positions=np.concatenate([prompts.positions[:, :, :length], after.astype(np.int32)], axis=2),
        image_slots=np.concatenate([prompts.image_slots[:, :length], np.full((1, count), -1, np.int32)], axis=1),
        loss_mask=np.arange(length + count)[None] >= length,
        patches=prompts.patches,
        patch_positions=prompts.patch_positions,
        patch_valid=prompts.patch_valid,
        image_ids=prompts.image_ids,
    )
    np.testing.assert_allclose(summed_loss(tiny.CONFIG, tiny.params(), row, chunk=8), -logps.sum(), rtol=1e-5)


def test_scores_against_numpy():
    batch, params = jax.tree.map(np.asarray, packed()), tiny.params()
    hidden = forward(
        tiny.CONFIG,
        params,
        embed_prompts(tiny.CONFIG, params, batch),
        batch.positions,
        packed_segments(batch.segment_ids),
    )
    logits = np.asarray(compute_logits(tiny.CONFIG, params, hidden), np.float64)
    for row, last in ((0, 45), (1, 36), (3, 10)):  # a token that ends a row's text changes no logits before it
        batch.tokens[row, last] = logits[row, last - 1].argmax()
    rows, tokens = np.nonzero(batch.loss_mask)
    before, targets = logits[rows, tokens - 1], batch.tokens[rows, tokens]
    losses = np.log(np.exp(before).sum(axis=-1)) - before[np.arange(len(targets)), targets]
    scores = summed_scores(tiny.CONFIG, params, batch, chunk=16)
    assert scores["tokens"] == len(targets) == 4 + 6 + 3 + 9 + 2 + 6 + 5
    np.testing.assert_allclose(scores["loss"], losses.sum(), rtol=1e-5)
    assert 3 <= float(scores["token_accuracy"]) == (before.argmax(axis=-1) == targets).sum() < len(targets)
