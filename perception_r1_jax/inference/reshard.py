"""The weights that serve: how they are kept, which mesh they lie on, and how they get there."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import AxisType, Mesh

from perception_r1_jax.errors import UserError
from perception_r1_jax.host_memory import to_host
from perception_r1_jax.models import (
    Int8,
    ModelConfig,
    Params,
    abstract_params,
    attach_adapters,
    cast_params,
    logical_axes,
    merge_adapters,
    quantize_weight,
    quantized_params,
    serving_params,
    summed_axes,
)
from perception_r1_jax.sharding import MESH_AXES, tree_shardings

CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much memory the processes of a container may take, by the version of its control groups."""


def device_memory(device: jax.Device) -> int:
    """Bytes of a device's memory; of the host's, shared out among its devices, where the device has none of its own."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return host_memory() // jax.local_device_count()


def host_memory() -> int:
    """Bytes of memory that this process may take: the host's, or those of its container."""
    said = [Path(path).read_text().strip() for path in CONTAINER_LIMITS if Path(path).is_file()]
    limits = [int(text) for text in said if text.isdecimal()]  # "max" is none
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


@dataclasses.dataclass(frozen=True)
class Serving:
    """How a model's weights are kept while they serve.

    Attributes:
        config: the model's shapes.
        dtype: to compute in, and of the weights.
        int8: keeps the decoder's matrices in 8 bits instead, with a scale for each output.
    """

    config: ModelConfig
    dtype: np.dtype
    int8: bool = False

    def convert(self, params: Params) -> Params:
        """Parameters as they are trained or read, adapters merged, taken apart and in these dtypes."""
        params = serving_params(attach_adapters(params))  # a layer is merged and cast by itself, not the whole stack
        params = merge_adapters(params)
        return quantized_params(self.config, params, self.dtype) if self.int8 else cast_params(params, self.dtype)

    @functools.cached_property
    def shapes(self) -> Params:
        """Shapes and dtypes of the weights."""
        return jax.eval_shape(self.convert, abstract_params(self.config))

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.shapes))

    def __str__(self) -> str:
        return f"int8 (computing in {self.dtype.name})" if self.int8 else self.dtype.name


def serving_mesh(mesh: Mesh, serving: Serving, weight_bytes: float) -> Mesh:
    """The same devices with the batch split over as many of them as the weights allow.

    Decoding reads all weights for every token. So each device has them whole where they fit: the smallest tensor
    parallelism is taken under which a device holds at most `weight_bytes` of them.

    Raises:
        UserError: they do not fit even when split over all devices.
    """
    devices, whole, kv_heads = mesh.devices.size, serving.bytes, serving.config.num_kv_heads
    for tensor in range(1, devices + 1):
        if devices % tensor == 0 and kv_heads % tensor == 0 and whole / tensor <= weight_bytes:
            # In the order of the mesh they come from: a program takes arrays of one order only.
            grid = mesh.devices.reshape(-1, 1, tensor)
            return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    raise UserError(
        f"the weights take {whole / 2**30:.2f} GiB in {serving}, and a device may hold "
        f"{weight_bytes / 2**30:.2f} GiB of them, also when split over {devices} devices and "
        f"{kv_heads} key heads. Use more or larger devices, bfloat16 (config.model.dtype, or --dtype), of a judge "
        "8-bit weights (config.judge.weights_int8, or --weights_int8), or a larger config.rollout.weights_memory, of a "
        "judge config.judge.weights_memory, or --weights_memory."
    )


Stream = Callable[[Mesh, np.dtype | None], Iterable[tuple[tuple[str | int, ...], jax.Array]]]
"""(serving mesh, dtype or None for that of the file) -> place among the `serving_params`, parameter on that mesh."""


def read_params(serving: Serving, mesh: Mesh, stream: Stream, *, host_memory: bool = False) -> Params:
    """The weights that serve from parameters that come one after another, so that they are never held twice.

    With `host_memory` each goes on to the memory of the devices' hosts before the next one comes.
    """
    axes = traverse_util.flatten_dict(logical_axes(serving.config, serving=True, int8=serving.int8))
    summed = traverse_util.flatten_dict(summed_axes(serving.config))
    kept = {}
    for path, x in stream(mesh, None if serving.int8 else serving.dtype):
        if serving.int8:
            x = _keeper(serving.dtype, summed[path], mesh, axes[path])(x)
        kept[path] = to_host(x) if host_memory else x
    return traverse_util.unflatten_dict(kept)


@functools.cache
def _keeper(dtype: np.dtype, summed: tuple[int, ...], mesh: Mesh, axes: Any) -> Callable[[jax.Array], jax.Array | Int8]:
    """A program that keeps a parameter in 8 bits, or one that no product sums over in `dtype`."""

    def keep(x: jax.Array) -> jax.Array | Int8:
        kept = quantize_weight(x, summed, dtype)
        return jax.lax.with_sharding_constraint(kept, tree_shardings(mesh, axes, kept))

    return jax.jit(keep)


def make_reshard(serving: Serving, mesh: Mesh) -> Callable[[Params], Params]:
    """One program that casts parameters, wherever they lie, takes layers apart and moves them to a mesh."""
    return jax.jit(serving.convert, out_shardings=serving_shardings(serving, mesh))


def serving_shardings(serving: Serving, mesh: Mesh) -> Params:
    """How the weights lie on their mesh."""
    return tree_shardings(mesh, logical_axes(serving.config, serving=True, int8=serving.int8), serving.shapes)
