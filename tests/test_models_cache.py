"""Serving on a mesh: where weights and caches lie, and what travels in a decoding step."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from perception_r1_jax.inference import Sampling, sampling
from perception_r1_jax.inference.programs import Slots, decode_stretch
from perception_r1_jax.inference.reshard import Serving, make_reshard, serving_mesh
from perception_r1_jax.models import (
    KeyValues,
    Tables,
    abstract_params,
    decode_step,
    embed_prompts,
    init_params,
    logical_axes,
    prefill,
    response_angles,
    serving_params,
)
from perception_r1_jax.sharding import MESH_AXES, make_mesh, put_batch, replicated, tree_shardings
from tests import tiny
from tests.collectives import collectives

SHARDS, PROMPTS, SAMPLES, LENGTH = 4, 2, 3, 8
SLOTS, PAGES, SPAN = 6, 8, 4
CONFIG = dataclasses.replace(tiny.CONFIG, vocab_size=512)  # four blocks of tokens for two devices


def tables() -> Tables:
    owners = np.tile(np.arange(PAGES, dtype=np.int32) % SLOTS, (SHARDS, 1))
    cells = np.tile(np.arange(SLOTS, dtype=np.int32), (SHARDS, 1))
    slots = cells.reshape(SHARDS, PROMPTS, SAMPLES)
    lengths = np.full((SHARDS, PROMPTS), 5, np.int32)
    return Tables(lengths, cells, slots, owners, np.int32(2), np.int32(4), prompt_block=1, page_block=2)


@functools.cache
def programs():
    """Prefill into a pool, and one decoding step, compiled for 4 x 2 devices, with the caches that they give."""
    mesh = make_mesh(4, 1, 2)
    prompts = tiny.prompt_batch([5] * SHARDS * PROMPTS, [0] * SHARDS * PROMPTS, length=LENGTH, windows=0)

    def fill(params, prompts, places):
        embeddings = embed_prompts(CONFIG, params, prompts)
        logits, new = prefill(CONFIG, params, prompts, embeddings, SHARDS)
        return logits, KeyValues.empty(CONFIG, SHARDS, PROMPTS, LENGTH, jnp.float32).put(places, new)

    def step(params, tokens, prompts, pages, recent, tables):
        angles, recent = response_angles(CONFIG, tokens), recent.joined()
        logits, recent = decode_step(CONFIG, params, tokens, angles, prompts, pages, recent, jnp.int32(1), tables)
        return logits, recent.apart(SHARDS)

    def draw(params, prompts, pages, slots, tables, key):
        drawn = Sampling(9, stop_ids=(tiny.STOP_ID,), pad_id=tiny.PAD_ID)
        arguments = {"dtype": jnp.float32, "length": SPAN, "sampling": drawn}
        return decode_stretch(CONFIG, params, prompts, pages, slots, tables, key, **arguments)

    with jax.set_mesh(mesh):
        params = make_reshard(Serving(CONFIG, jnp.dtype(jnp.float32)), mesh)(init_params(CONFIG, jax.random.key(0)))
        empty = jax.jit(functools.partial(KeyValues.empty, CONFIG, SHARDS), static_argnums=(0, 1, 2))
        pages, recent = empty(PAGES, SPAN, jnp.float32), empty(SLOTS, SPAN, jnp.float32)
        arguments = params, *put_batch(mesh, (prompts, np.tile(np.arange(PROMPTS, dtype=np.int32), (SHARDS, 1))))
        filling = jax.jit(fill).lower(*arguments).compile()
        pool = filling(*arguments)[1]
        arguments = params, *put_batch(mesh, (np.ones((SHARDS, SLOTS), np.int32),)), pool, pages, recent
        decoding = jax.jit(step).lower(*arguments, put_batch(mesh, tables())).compile()
        written = decoding(*arguments, put_batch(mesh, tables()))[1]
        numbers = np.ones((SHARDS, SLOTS), np.int32)
        slots = Slots(*[numbers] * 4, numbers.astype(np.uint32), numbers, numbers, None)
        key = jax.device_put(jax.random.key(0), replicated(mesh))
        placed = put_batch(mesh, (slots, tables()))
        drawing = jax.jit(draw).lower(params, pool, pages, *placed, key).compile()
    return {
        "prefill": filling.as_text(),
        "decode": decoding.as_text(),
        "draw": drawing.as_text(),
    }, {
        "prompts": pool,
        "pages": pages,
        "recent": written,
    }


@pytest.mark.parametrize("which", ["prompts", "pages", "recent"])
def test_a_cache_is_split_by_shard_and_by_key_head(which):
    cache = programs()[1][which]
    for x in (*cache.k, *cache.v):
        assert [whole // part for whole, part in zip(x.shape, x.sharding.shard_shape(x.shape))] == [4, 1, 2, 1, 1]


def test_in_a_step_only_sums_of_activations_travel():
    """Weights and caches stay where they are: what the two devices of a shard exchange is sums over their halves."""
    found = collectives(programs()[0]["decode"])
    assert set(found) == {"all-reduce"}
    hidden = tiny.CONFIG.hidden_size
    assert set(found["all-reduce"]) == {(1, SLOTS, hidden)}  # of one shard: tokens looked up, attention, MLP
    assert len(found["all-reduce"]) <= 1 + 2 * tiny.CONFIG.num_layers


def test_no_row_of_the_vocabulary_travels_when_a_token_is_drawn():
    """Of each row the sums of its blocks do, and the one block that the token is in."""
    found = collectives(programs()[0]["draw"])
    sizes = [int(np.prod(shape)) for shapes in found.values() for shape in shapes]
    assert max(sizes) == SLOTS * sampling.BLOCK


def test_a_prompt_goes_into_the_pool_without_leaving_its_shard():
    """No gather at all: the two devices of a shard add up their halves of activations."""
    assert set(collectives(programs()[0]["prefill"])) == {"all-reduce"}


def test_a_mesh_serves_in_the_order_of_its_devices():
    """Programs take arrays of one order only, and a mesh for training may have its own."""
    order = np.array(jax.devices())[[3, 1, 7, 0, 2, 6, 4, 5]].reshape(2, 4, 1)
    training = Mesh(order, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    shardings = tree_shardings(training, logical_axes(tiny.CONFIG), abstract_params(tiny.CONFIG))
    params = jax.device_put(tiny.params(), shardings)
    serving = Serving(tiny.CONFIG, jnp.dtype(jnp.float32))
    mesh = serving_mesh(training, serving, 1e9)
    assert mesh.devices.flat[:].tolist() == order.flat[:].tolist()
    served = make_reshard(serving, mesh)(params)
    expected = serving_params(tiny.params())
    jax.tree.map(np.testing.assert_array_equal, served, expected)
