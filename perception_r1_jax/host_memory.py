"""Arrays in the memory of the host between their uses: pinned, so that devices copy them without the host's help."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, Sharding

from perception_r1_jax.errors import UserError

PINNED = "pinned_host"


def to_host(tree: Any) -> Any:
    """The arrays in the memory of the hosts of their devices, split as they are."""
    return jax.device_put(tree, jax.memory.Space.Host)


def to_device(tree: Any) -> Any:
    """The arrays on their devices, inside of a program too; those that are there already are not copied."""
    return jax.device_put(tree, jax.memory.Space.Device)


def is_on_host(sharding: Sharding) -> bool:
    """Whether arrays with this sharding take no memory of a device."""
    return sharding.memory_kind == PINNED


def check_host_memory(field: str, mesh: Mesh) -> None:
    """Raises UserError unless the mesh's devices can copy from and to their hosts' memory; `field` asks for it."""
    device = mesh.local_mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if PINNED not in kinds:
        raise UserError(
            f"config.{field} is True, but {device.device_kind} has no memory of the kind {PINNED!r}, only "
            f"{', '.join(kinds)}. Set config.{field} to False."
        )
