"""Numbers in 8 bits: their error, and what is drawn with keys and values, or weights, that are kept so."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.inference.reshard import Serving, device_memory
from perception_r1_jax.models import token_bytes
from perception_r1_jax.models.quantized import contract, contract_rows, look_up, quantize
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("axes", [(0,), (0, 1), (2,)])
def test_each_run_along_the_axes_has_its_scale(axes, dtype):
    x = np.random.default_rng(1).normal(size=(6, 5, 4)).astype(np.float32)
    kept = quantize(jnp.asarray(x), axes, dtype)
    assert kept.scales.dtype == dtype
    scales = np.expand_dims(np.asarray(kept.scales, np.float32), axes)
    largest = np.abs(x).max(axes, keepdims=True)
    np.testing.assert_allclose(scales, largest / 127, rtol=float(jnp.finfo(dtype).eps))
    off = np.abs(np.asarray(kept.values, np.float32) * scales - x)
    assert (off <= 0.5001 * scales).all()  # also where the scale was rounded down, and the largest number is cut


def test_products_are_those_of_the_numbers_that_are_kept():
    rng = np.random.default_rng(2)
    x, matrix, table = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 4, 8), (4, 8, 5, 2), (7, 8)))
    kept, rows = quantize(matrix, (0, 1)), quantize(table, (1,))
    floats = kept.values.astype(jnp.float32) * kept.scales[None, None]
    np.testing.assert_allclose(contract(x, kept, 2), contract(x, floats, 2), rtol=1e-5, atol=1e-5)
    floats = rows.values.astype(jnp.float32) * rows.scales[:, None]
    np.testing.assert_allclose(contract_rows(x, rows), contract_rows(x, floats), rtol=1e-5, atol=1e-5)
    indices = jnp.asarray([[6, 0], [3, 3]])
    np.testing.assert_array_equal(look_up(rows, indices), look_up(floats, indices))


TEXT = dataclasses.replace(tiny.CONFIG, model_type="qwen2", vision=None, mrope_section=None)
SHAPES = {"hidden_size": 896, "intermediate_size": 4864, "num_layers": 24, "num_heads": 14, "num_kv_heads": 2}
HALF_B = dataclasses.replace(TEXT, **SHAPES, head_dim=64, vocab_size=151936, tie_embeddings=True)
"""Qwen2.5-0.5B: the smallest, so scales and vectors weigh most."""


@pytest.mark.parametrize(("dtype", "share"), [(jnp.float32, 0.25), (jnp.bfloat16, 0.5)])
def test_weights_take_a_quarter_of_float32_and_half_of_bfloat16(dtype, share):
    whole, small = (Serving(HALF_B, jnp.dtype(dtype), int8).bytes for int8 in (False, True))
    assert share < small / whole < 1.01 * share


def text_params():
    return {"decoder": tiny.params()["decoder"]}


def served(mesh, **settings):
    """Responses, and the engine that drew them."""
    prompts = tiny.prompt_batch([20, 7, 24, 3], [0] * 4, windows=0)
    sampling = Sampling(40, stop_ids=(tiny.STOP_ID,), pad_id=tiny.PAD_ID, min_new_tokens=40)
    engine = Engine(TEXT, text_params(), mesh, **settings)
    return engine.generate(prompts, 8, sampling, jax.random.key(0)), engine


def differences(one, other) -> np.ndarray:
    """Between log-probs of tokens up to which both have said the same."""
    same = np.cumprod(one.tokens == other.tokens, axis=-1).astype(bool)
    assert same.sum() > 200
    return np.abs(one.logps - other.logps)[same]


@functools.cache
def served_alone(int8: bool):
    return served(make_mesh(devices=jax.devices()[:1]), weights_int8=int8)


def test_the_engine_holds_what_was_counted_and_draws_nearly_the_same():
    (exact, _), (small, engine) = served_alone(False), served_alone(True)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(engine._params))
    assert held == Serving(TEXT, jnp.dtype(jnp.float32), int8=True).bytes
    difference = differences(small, exact)
    assert 0 < difference.max() < 0.3
    assert difference.mean() < 0.03


def test_split_over_devices_the_weights_say_the_same():
    alone, engine = served_alone(True)
    memory = device_memory(jax.devices()[0])
    split, engine = served(make_mesh(), weights_int8=True, weights_memory=0.7 * engine.serving.bytes / memory)
    assert engine.mesh.shape == {"data": 4, "fsdp": 1, "tensor": 2}
    np.testing.assert_array_equal(split.tokens, alone.tokens)
    np.testing.assert_allclose(split.logps, alone.logps, rtol=1e-4, atol=1e-4)
    gate = engine._params["decoder"]["layers"][0]["mlp"]["gate"]["kernel"]
    for leaf in (gate.values, gate.scales):
        assert leaf.addressable_shards[0].data.shape[-1] == leaf.shape[-1] // 2


def test_the_engine_draws_nearly_the_same_from_a_quarter_of_the_bytes():
    prompts = tiny.prompt_batch([20, 7, 24], [1, 0, 1])
    sampling = Sampling(
        40, stop_ids=(tiny.STOP_ID,), pad_id=tiny.PAD_ID, banned_ids=(tiny.IMAGE_ID,), min_new_tokens=40
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    exact, small = (
        Engine(tiny.CONFIG, tiny.params(), mesh, cache_int8=int8).generate(prompts, 2, sampling, jax.random.key(0))
        for int8 in (False, True)
    )
    difference = differences(small, exact)
    assert 0 < difference.max() < 0.3  # log-probs around -4, of a model that is far from smooth
    assert difference.mean() < 0.03
    per_token = token_bytes(tiny.CONFIG, jnp.int8) / token_bytes(tiny.CONFIG, jnp.float32)
    recent = 6 * 32 * token_bytes(tiny.CONFIG, jnp.float32)  # what is fed within a stretch stays as it is
    assert small.stats.cache_bytes - recent == per_token * (exact.stats.cache_bytes - recent)
    assert per_token == (8 + 4) / (4 * 8)  # heads of 8 numbers: the scale weighs more than in a model of 128
