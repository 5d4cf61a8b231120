"""Prefill and decoding on a mesh: where the caches lie, and what travels."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.models import PromptCache, ResponseCache, abstract_params, decode_step, logical_axes, prefill
from perception_r1_jax.sharding import make_mesh, put_batch, tree_shardings
from perception_r1_jax.weights.names import flatten
from tests import tiny

N, G, CAPACITY = 8, 3, 4


@functools.cache
def programs():
    """Prefill and one decoding step, compiled for 4 x 2 devices, and the caches that they give."""
    mesh = make_mesh(1, 4, 2)
    shardings = tree_shardings(mesh, logical_axes(tiny.CONFIG), abstract_params(tiny.CONFIG))
    params = jax.device_put(tiny.params(), shardings)
    prompts = put_batch(mesh, tiny.prompt_batch([5] * N, [0] * N, length=8, windows=0))

    def step(params, tokens, positions, k, v, valid):
        empty = ResponseCache.empty(tiny.CONFIG, N, G, CAPACITY, jnp.float32)
        return decode_step(tiny.CONFIG, params, tokens, positions, PromptCache(k, v, valid), empty, jnp.int32(0))

    with jax.set_mesh(mesh):
        filled = jax.jit(functools.partial(prefill, tiny.CONFIG)).lower(params, prompts).compile()
        prompt = filled(params, prompts)[1]
        tokens = put_batch(mesh, np.ones((N, G), np.int32))
        arguments = params, tokens, prompts.next_position, prompt.k, prompt.v, prompt.valid
        decoded = jax.jit(step).lower(*arguments).compile()
        response = decoded(*arguments)[1]
    return filled.as_text(), decoded.as_text(), prompt, response


def gathered(text: str) -> set[tuple[int, ...]]:
    """Shapes that all-gathers of a compiled program give."""
    results = re.findall(r" = (.*?) all-gather(?:-start)?\(", text)
    return {tuple(map(int, shape.split(","))) for result in results for shape in re.findall(r"f32\[([\d,]+)\]", result)}


def matrices_whole_over_fsdp() -> set[tuple[int, ...]]:
    """Shapes of a decoder layer's matrices on a device that has gathered them over `fsdp`."""
    shapes, axes = flatten(abstract_params(tiny.CONFIG)), flatten(logical_axes(tiny.CONFIG))
    split = {"heads": 2, "kv_heads": 2, "mlp": 2}
    return {
        tuple(size // split.get(axis, 1) for size, axis in zip(shapes[path].shape, axes[path]) if axis != "layers")
        for path in shapes
        if path.startswith("decoder/layers") and path.endswith("kernel")
    }


@pytest.mark.parametrize("which", [2, 3], ids=["prompt", "response"])
def test_a_cache_is_split_by_prompt_and_by_key_head(which):
    cache = programs()[which]
    for x in (cache.k, cache.v):
        share = [whole // part for whole, part in zip(x.shape, x.sharding.shard_shape(x.shape))]
        assert share == [1, 4] + [1] * (x.ndim - 4) + [2, 1]


def test_prefill_gathers_weights_and_a_decoding_step_does_not():
    prefilling, decoding, *_ = programs()
    assert matrices_whole_over_fsdp() <= gathered(prefilling)
    assert not matrices_whole_over_fsdp() & gathered(decoding)
