"""The copy of the weights that serves: which mesh it lies on, and how it gets there."""

from __future__ import annotations

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.typing import DTypeLike

from perception_r1_jax.errors import UserError
from perception_r1_jax.models import (
    ModelConfig,
    Params,
    abstract_params,
    cast_params,
    count_params,
    logical_axes,
    serving_params,
)
from perception_r1_jax.sharding import MESH_AXES, tree_shardings


def device_memory(device: jax.Device) -> int:
    """Bytes of a device's memory; of the host's, shared out among its devices, where the device has none of its own."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()


def serving_mesh(mesh: Mesh, config: ModelConfig, dtype: DTypeLike, weight_bytes: float) -> Mesh:
    """The same devices with the batch split over as many of them as the weights allow.

    Decoding reads all weights for every token. So each device has them whole where they fit: the smallest tensor
    parallelism is taken under which a device holds at most `weight_bytes` of them.

    Raises:
        UserError: they do not fit even when split over all devices.
    """
    devices = mesh.devices.size
    whole = count_params(config) * np.dtype(dtype).itemsize
    for tensor in range(1, devices + 1):
        if devices % tensor == 0 and config.num_kv_heads % tensor == 0 and whole / tensor <= weight_bytes:
            # In the order of the mesh they come from: a program takes arrays of one order only.
            grid = mesh.devices.reshape(-1, 1, tensor)
            return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    raise UserError(
        f"the weights take {whole / 2**30:.2f} GiB in {np.dtype(dtype).name}, and a device may hold "
        f"{weight_bytes / 2**30:.2f} GiB of them, also when split over {devices} devices and "
        f"{config.num_kv_heads} key heads. Use more or larger devices, or a larger share of their memory for weights."
    )


def make_reshard(config: ModelConfig, mesh: Mesh, dtype: DTypeLike) -> Callable[[Params], Params]:
    """One program that casts parameters, wherever they lie, to `dtype`, takes layers apart and moves them to a mesh."""

    def move(params: Params) -> Params:
        return cast_params(serving_params(params), dtype)  # a layer is cast by itself, not the whole stack

    shapes = jax.eval_shape(move, abstract_params(config))
    return jax.jit(move, out_shardings=serving_shardings(config, mesh, shapes))


def serving_shardings(config: ModelConfig, mesh: Mesh, shapes: Params) -> Params:
    """How the copy lies on its mesh; `shapes` are its own."""
    return tree_shardings(mesh, logical_axes(config, serving=True), shapes)
