"""Keys and values in 8 bits: the error of a number, and of what is drawn with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.models import token_bytes
from perception_r1_jax.models.quantized import quantize
from perception_r1_jax.sharding import make_mesh
from tests import tiny


def test_a_number_is_off_by_half_a_step_at_most():
    x = np.random.default_rng(0).normal(size=(5, 7, 16)).astype(np.float32) * np.logspace(-3, 3, 7)[:, None].astype(
        np.float32
    )
    x[0, 0] = 0
    kept = quantize(jnp.asarray(x))
    assert kept.values.dtype == jnp.int8
    assert (np.asarray(kept.scales) > 0).all()
    back = np.asarray(kept.values, np.float32) * np.asarray(kept.scales)[..., None]
    step = np.abs(x).max(-1, keepdims=True) / 127
    assert (np.abs(back - x) <= 0.5001 * step).all()
    assert (np.abs(np.asarray(kept.values)).max(-1)[1:] == 127).all()


def test_the_engine_draws_nearly_the_same_from_a_quarter_of_the_bytes():
    """A forced response, so that both score the same tokens."""
    prompts = tiny.prompt_batch([20, 7, 24], [1, 0, 1])
    sampling = Sampling(40, stop_ids=(tiny.STOP_ID,), pad_id=tiny.PAD_ID, banned_ids=(tiny.IMAGE_ID,))
    forced = np.random.default_rng(0).integers(0, 80, (3, 40)).astype(np.int32)
    mesh = make_mesh(devices=jax.devices()[:1])
    exact, small = (
        Engine(tiny.CONFIG, tiny.params(), mesh, cache_int8=int8).generate(
            prompts, 2, sampling, jax.random.key(0), forced=forced
        )
        for int8 in (False, True)
    )
    difference = np.abs(small.logps - exact.logps)
    assert 0 < difference.max() < 0.3  # log-probs around -4, of a model that is far from smooth
    assert difference.mean() < 0.03
    per_token = token_bytes(tiny.CONFIG, jnp.int8) / token_bytes(tiny.CONFIG, jnp.float32)
    recent = 6 * 32 * token_bytes(tiny.CONFIG, jnp.float32)  # what is fed within a stretch stays as it is
    assert small.stats.cache_bytes - recent == per_token * (exact.stats.cache_bytes - recent)
    assert per_token == (8 + 4) / (4 * 8)  # heads of 8 numbers: the scale weighs more than in a model of 128
