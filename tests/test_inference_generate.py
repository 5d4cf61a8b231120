"""Generation: decoding equals a full forward pass, and a sample depends on nothing but its own prompt and key."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.grpo.log_probs import response_log_probs
from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.models import abstract_params, logical_axes
from perception_r1_jax.sharding import make_mesh, tree_shardings
from tests import tiny

SAMPLING = Sampling(8, stop_ids=(tiny.STOP_ID,), pad_id=tiny.PAD_ID, banned_ids=(tiny.IMAGE_ID,))
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny.CONFIG, tiny.params(), make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def prompts():
    return tiny.prompt_batch([20, 7, 0, 24], [1, 0, 0, 1])


@pytest.fixture(scope="module")
def generated(engine, prompts):
    return engine.generate(prompts, 3, SAMPLING, KEY)


@jax.jit
def teacher_forced(prompts, tokens, mask):
    """Log-probs of given responses by one pass over prompt and response."""
    banned = (tiny.IMAGE_ID,)
    return response_log_probs(tiny.CONFIG, tiny.params(), prompts, tokens, mask, banned_ids=banned)[0]


def test_log_probs_equal_a_forward_pass_over_prompt_and_response(prompts, generated):
    assert generated.mask[[0, 1, 3]].sum() > 40
    logps = teacher_forced(prompts, generated.tokens, generated.mask)
    np.testing.assert_allclose(np.where(generated.mask, logps, 0.0), generated.logps, atol=2e-5)


def test_greedy_tokens_are_likelier_than_others_by_a_forward_pass(engine, prompts):
    greedy = engine.generate(prompts, 3, dataclasses.replace(SAMPLING, temperature=0.0), KEY)
    best = teacher_forced(prompts, greedy.tokens, greedy.mask)
    swapped = greedy.tokens.copy()
    swapped[:, :, 4] = (swapped[:, :, 4] + 1 + np.arange(3)) % 80
    worse = teacher_forced(prompts, swapped, greedy.mask)
    seen = greedy.mask[:, :, 4]
    assert seen.any()
    assert (np.asarray(best)[:, :, 4] >= np.asarray(worse)[:, :, 4])[seen].all()


def test_samples_of_a_group_differ_and_a_repeated_call_does_not(engine, prompts, generated):
    assert not np.array_equal(generated.tokens[0, 0], generated.tokens[0, 1])
    again = engine.generate(prompts, 3, SAMPLING, KEY)
    np.testing.assert_array_equal(again.tokens, generated.tokens)
    other = engine.generate(prompts, 3, SAMPLING, jax.random.key(6))
    assert not np.array_equal(other.tokens, generated.tokens)


def test_a_sample_does_not_depend_on_batch_order_bucket_or_group_size(engine, generated):
    prompts = tiny.prompt_batch([20, 7, 0, 24], [1, 0, 0, 1])
    permuted = engine.generate(tiny.rows(prompts, [3, 2, 1, 0]), 3, SAMPLING, KEY)
    np.testing.assert_array_equal(permuted.tokens[::-1], generated.tokens)
    longer = Sampling(12, SAMPLING.stop_ids, SAMPLING.pad_id, banned_ids=SAMPLING.banned_ids)
    wide = engine.generate(_padded(prompts, 8), 2, longer, KEY)
    np.testing.assert_array_equal(wide.tokens[:, :, :8], generated.tokens[:, :2])


def _padded(prompts, extra):
    def pad(x, value, axis=1):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, extra)
        return np.pad(x, widths, constant_values=value)

    return dataclasses.replace(
        prompts,
        tokens=pad(prompts.tokens, tiny.PAD_ID),
        positions=pad(prompts.positions, 1, 2),
        image_slots=pad(prompts.image_slots, -1),
        patches=pad(prompts.patches, 0),
        patch_positions=pad(prompts.patch_positions, 0),
        patch_valid=pad(prompts.patch_valid, False),
        image_ids=pad(prompts.image_ids, -1),
    )


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2), (2, 4, 1)])  # the last does not divide the 4 prompts
def test_eight_devices_draw_what_one_draws(prompts, generated, shape):
    mesh = make_mesh(*shape)
    params = jax.device_put(
        tiny.params(), tree_shardings(mesh, logical_axes(tiny.CONFIG), abstract_params(tiny.CONFIG))
    )
    spread = Engine(tiny.CONFIG, params, mesh).generate(prompts, 3, SAMPLING, KEY)
    np.testing.assert_array_equal(spread.tokens, generated.tokens)
    np.testing.assert_allclose(spread.logps, generated.logps, atol=1e-5)


def test_nothing_follows_the_stop_token_and_banned_ids_never_come(engine, prompts):
    stops = tuple(range(60))  # most tokens end a response
    out = engine.generate(prompts, 3, dataclasses.replace(SAMPLING, stop_ids=stops), KEY)
    real = np.array([0, 1, 3])
    assert out.stopped[real].any()
    assert not np.isin(out.tokens, SAMPLING.banned_ids).any()
    for tokens, mask, stopped in zip(
        out.tokens[real].reshape(9, 8), out.mask[real].reshape(9, 8), out.stopped[real].ravel()
    ):
        size = int(mask.sum())
        assert mask[:size].all()
        assert np.isin(tokens[size - 1], stops) == stopped
        assert not np.isin(tokens[: size - 1], stops).any()
        assert (tokens[size:] == tiny.PAD_ID).all()
        assert stopped or size == 8


def test_filler_prompts_yield_nothing(generated):
    assert not generated.mask[2].any()
    assert (generated.logps[2] == 0).all()


def test_nothing_is_compiled_after_the_first_batch_of_a_bucket():
    engine = Engine(tiny.CONFIG, tiny.params(), make_mesh(devices=jax.devices()[:1]))
    engine.generate(tiny.prompt_batch([20, 5, 9, 24], [1, 0, 0, 1]), 3, SAMPLING, KEY)
    warm = engine.compilations
    for seed in range(3):
        engine.generate(tiny.prompt_batch([20, 5, 9, 24], [1, 0, 0, 1], seed=seed), 3, SAMPLING, jax.random.key(seed))
    assert engine.compilations == warm
    engine.load(jax.tree.map(lambda x: x * 2, tiny.params()))
    engine.generate(tiny.prompt_batch([20, 5, 9, 24], [1, 0, 0, 1]), 3, SAMPLING, KEY)
    assert engine.compilations == warm


def test_bfloat16_weights_generate(prompts):
    engine = Engine(tiny.CONFIG, tiny.params(), make_mesh(devices=jax.devices()[:1]), dtype=jnp.bfloat16)
    out = engine.generate(prompts, 3, SAMPLING, KEY)
    assert out.logps.dtype == np.float32
    assert np.isfinite(out.logps).all()
