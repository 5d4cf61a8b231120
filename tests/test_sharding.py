"""The mesh and the table of logical axes, on 8 fake devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from perception_r1_jax.models import abstract_params, logical_axes
from perception_r1_jax.sharding import (
    MESH_AXES,
    RULES,
    batch_sharding,
    constrain,
    make_mesh,
    partition_spec,
    put_batch,
    tree_shardings,
)
from perception_r1_jax.weights.names import flatten
from tests import tiny

TEXT = dataclasses.replace(tiny.CONFIG, model_type="qwen2", vision=None, mrope_section=None, tie_embeddings=True)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((1, -1, 1), (1, 8, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((-1, 1, 4), (2, 1, 4)),
        ((1, 8, -1), (1, 8, 1)),
        ((2, 2, 2), (2, 2, 2)),
    ],
)
def test_one_size_may_be_what_is_left(sizes, shape):
    mesh = make_mesh(*sizes)
    assert mesh.axis_names == MESH_AXES
    assert tuple(mesh.shape.values()) == shape


@pytest.mark.parametrize("sizes", [(1, 4, 1), (3, -1, 1), (16, -1, 1), (0, -1, 1), (-2, -2, 2)])
def test_sizes_that_do_not_fit_the_devices_are_an_error(sizes):
    with pytest.raises(ValueError, match=rf"'data': {sizes[0]}.* do not multiply to the 8 devices at hand"):
        make_mesh(*sizes)


def test_only_one_size_may_be_left_open():
    with pytest.raises(ValueError, match="only one of them may be -1"):
        make_mesh(-1, -1, 1)


def test_fewer_devices_on_request():
    assert make_mesh(devices=jax.devices()[:2]).devices.size == 2


def test_rules_name_mesh_axes_only():
    assert {axis for axes in RULES.values() for axis in axes} <= set(MESH_AXES)


@pytest.mark.parametrize("config", [tiny.CONFIG, TEXT], ids=["vision", "text"])
def test_every_axis_of_every_parameter_has_a_rule(config):
    shapes, axes = flatten(abstract_params(config)), flatten(logical_axes(config))
    assert shapes.keys() == axes.keys()
    for path, names in axes.items():
        assert len(names) == len(shapes[path].shape), path
        assert set(names) - {None} <= set(RULES), path
        used = [axis for name in names if name for axis in RULES[name]]
        assert len(used) == len(set(used)), f"{path} uses a mesh axis twice"


def test_every_matrix_is_split_and_a_device_holds_its_share():
    mesh = make_mesh(1, 4, 2)
    shapes = abstract_params(tiny.CONFIG)
    shardings = flatten(tree_shardings(mesh, logical_axes(tiny.CONFIG), shapes))
    for path, leaf in flatten(shapes).items():
        if path.endswith(("kernel", "embedding")):
            share = np.prod(leaf.shape) / np.prod(shardings[path].shard_shape(leaf.shape))
            assert share == (4 if "patch_embed" in path else 8), path
    assert shardings["decoder/embed/embedding"].shard_shape((96, 32)) == (48, 8)
    assert shardings["decoder/layers/attention/q/kernel"].shard_shape((2, 32, 4, 8)) == (2, 8, 2, 8)


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = make_mesh(1, 4, 2)
    assert partition_spec(mesh, ("embed", "mlp"), (32, 48)) == PartitionSpec(("fsdp",), ("tensor",))
    assert partition_spec(mesh, ("embed", "mlp"), (30, 48)) == PartitionSpec(None, ("tensor",))
    assert partition_spec(mesh, ("layers", None, "kv_heads"), (2, 3, 1)) == PartitionSpec(None, None, None)
    assert partition_spec(make_mesh(2, 4, 1), ("batch", None), (4, 3)) == PartitionSpec(None, None)


def test_an_unknown_axis_is_an_error():
    with pytest.raises(KeyError, match="experts"):
        partition_spec(make_mesh(), ("experts",), (8,))
    with pytest.raises(ValueError, match="zip"):
        partition_spec(make_mesh(), ("embed",), (8, 8))


def test_a_batch_lies_over_data_and_fsdp():
    mesh = make_mesh(2, 2, 2)
    batch = {"tokens": np.arange(24).reshape(8, 3), "lengths": np.arange(8), "few": np.arange(3)}
    placed = put_batch(mesh, batch)
    assert placed["tokens"].sharding.shard_shape((8, 3)) == (2, 3)
    assert placed["lengths"].sharding.shard_shape((8,)) == (2,)
    assert placed["few"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


def test_the_batch_may_be_another_dimension():
    sharding = batch_sharding(make_mesh(2, 2, 2), (3, 8, 5), axis=1)
    assert sharding.shard_shape((3, 8, 5)) == (3, 2, 5)


def test_constrain_pins_under_a_mesh_and_does_nothing_without():
    x = jnp.zeros((8, 4))
    assert constrain(x, ("batch", None)) is x
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        pinned = jax.jit(lambda x: constrain(x * 2, ("batch", None)))(x)
    assert pinned.sharding.is_equivalent_to(batch_sharding(mesh, (8, 4)), 2)


def test_constrain_keeps_an_unnamed_dimension_whole_and_leaves_one_that_does_not_divide_to_the_compiler():
    mesh = make_mesh(2, 4, 1)
    x = jax.device_put(jnp.zeros((4, 8)), NamedSharding(mesh, PartitionSpec("data", "fsdp")))
    with jax.set_mesh(mesh):
        pinned = jax.jit(lambda x: constrain(x * 2, ("batch", None)))(x)  # 4 rows over data x fsdp = 8
    assert pinned.sharding.shard_shape((4, 8)) == (2, 8)
