"""The engine reads a model parameter by parameter: the same weights, and never twice in memory."""

from __future__ import annotations

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.inference.reshard import Serving, make_reshard, read_params
from perception_r1_jax.models import load_config, logical_axes
from perception_r1_jax.sharding import make_mesh, tree_shardings
from perception_r1_jax.weights import convert_huggingface, load_params, stream_params
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint

MESHES = {"one": (1, 1, 1), "split": (4, 1, 2)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Qwen2.5-VL in both kinds of directories."""
    root = tmp_path_factory.mktemp("read")
    published = write_random_checkpoint(root / "published", config_overrides={"num_hidden_layers": 2})
    convert_huggingface(published, root / "converted")
    return root


def mesh_of(name: str):
    sizes = MESHES[name]
    return make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("kind", ["published", "converted"])
def test_they_are_the_weights_that_a_copy_would_give(folders, kind, int8, mesh):
    folder, mesh = folders / kind, mesh_of(mesh)
    config = load_config(folder)
    serving = Serving(config, jnp.dtype(jnp.bfloat16), int8)
    read = read_params(serving, mesh, functools.partial(stream_params, folder, config))
    copied = make_reshard(serving, mesh)(load_params(folder, config, mesh))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), read, copied)
    shardings = tree_shardings(mesh, logical_axes(config, serving=True, int8=int8), serving.shapes)
    same = jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim), read, shardings)
    assert all(jax.tree.leaves(same)), same


@pytest.mark.parametrize("int8", [False, True])
def test_beside_what_is_kept_there_are_two_parameters_at_most(tmp_path, int8):
    """The one that was just made ready, and the next one as it comes from the file."""
    shapes = {"num_hidden_layers": 8, "intermediate_size": 640, "tie_word_embeddings": True}
    folder, mesh = write_random_checkpoint(tmp_path, "qwen2", shapes), mesh_of("one")
    config = load_config(folder)
    serving = Serving(config, jnp.dtype(jnp.float32), int8)
    gc.collect()
    before, peak, largest = held(), 0, 0

    def watched(*arguments):
        nonlocal peak, largest
        for path, x in stream_params(folder, config, *arguments):
            largest, peak = max(largest, x.nbytes), max(peak, held() - before)
            yield path, x

    params = read_params(serving, mesh, watched)
    assert held() - before == serving.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert peak <= serving.bytes + 2 * largest
    assert 2 * largest < Serving(config, jnp.dtype(jnp.float32)).bytes / 4  # else this says little


def held() -> int:
    """Bytes of all arrays."""
    return sum(x.nbytes for x in jax.live_arrays())
