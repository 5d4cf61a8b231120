"""The device mesh, and one table that says how every array is laid out on it.

Parameters and activations name their axes logically ("embed", "heads", "batch", ...). `RULES` maps each
logical axis to mesh axes. Nothing else changes between one CPU and a pod.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from perception_r1_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # prompts, responses, requests to the judge
    "lookup": ("data",),  # the batch where `fsdp` splits the hidden size: embedding lookups, tokens being decoded
    "layers": (),  # the stacked axis is scanned over, never split
    "embed": ("fsdp",),  # hidden size of decoder and vision tower, in parameters
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "patch": (),  # numbers of a flattened patch
    "head_dim": (),
}


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp`, `tensor`; one of the sizes may be -1 for "all that is left".

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1:
        raise UserError(f"mesh sizes {dict(zip(MESH_AXES, sizes))}: only one of them may be -1.")
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh sizes {dict(zip(MESH_AXES, (data, fsdp, tensor)))} do not multiply to the {len(devices)} devices "
            "at hand. Set config.mesh so that they do; one size may be -1."
        )
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def partition_spec(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], uneven: Any = None) -> PartitionSpec:
    """The layout of an array with these logical axes. A dimension that does not divide gets `uneven`: it stays whole.

    Raises:
        KeyError: an axis that `RULES` does not know.
    """
    entries = []
    for axis, size in zip(axes, shape, strict=True):
        mesh_axes = () if axis is None else RULES[axis]
        ways = int(np.prod([mesh.shape[name] for name in mesh_axes]))
        entries.append((mesh_axes if size % ways == 0 else uneven) if mesh_axes else None)
    return PartitionSpec(*entries)


def tree_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings for a tree of arrays (or ShapeDtypeStructs) from the tree of their logical axes."""
    return jax.tree.map(lambda x, names: NamedSharding(mesh, partition_spec(mesh, names, x.shape)), shapes, axes)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Pins an activation's layout under the mesh that `jax.set_mesh` has set; does nothing without one.

    An axis None keeps its dimension whole. A dimension that does not divide is left to the compiler: it may lie over
    some of its mesh axes (4 prompts over `data` = 2 where `fsdp` = 4), and must not be gathered for being pinned.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = partition_spec(mesh, axes, x.shape, uneven=PartitionSpec.UNCONSTRAINED)
    return jax.lax.with_sharding_constraint(x, spec)


def constrain_batch(batch: Any) -> Any:
    """Pins a tree of arrays with leading batch dimension, as `constrain`."""
    return jax.tree.map(lambda x: constrain(x, ("batch",) + (None,) * (x.ndim - 1)), batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, shape: Sequence[int], axis: int = 0) -> NamedSharding:
    """The layout of an array whose dimension `axis` is the batch."""
    names = [None] * len(shape)
    names[axis] = "batch"
    return NamedSharding(mesh, partition_spec(mesh, names, shape))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Moves a tree of numpy arrays with leading batch dimension onto the mesh; every device gets a number whole."""
    return jax.tree.map(lambda x: jax.device_put(x, _batch_place(mesh, np.shape(x))), batch)


def replicate_key(mesh: Mesh, key: Key[Array, ""]) -> Key[Array, ""]:
    """Moves a random key onto the mesh, whole; each process brings its own copy of it."""
    data = jax.device_put(np.asarray(jax.random.key_data(key)), replicated(mesh))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))


def abstract_batch(mesh: Mesh, batch: Any) -> Any:
    """Shape, dtype and sharding of what `put_batch` would give, for arrays or their shapes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_batch_place(mesh, x.shape)), batch)


def _batch_place(mesh, shape):
    return batch_sharding(mesh, shape) if shape else replicated(mesh)
