"""A program of a run: how it is lowered from shapes alone, and what lies on the devices while it runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from perception_r1_jax.host_memory import is_on_host

PARAMETERS, OPTIMIZER, CACHE, JUDGE = "parameters", "optimizer", "kv_cache", "judge"
KINDS = (PARAMETERS, OPTIMIZER, CACHE, JUDGE)
"""What lies on the devices from one program to the next. All else that a program takes counts as activations."""

Held = Mapping[str, Any]
"""For some of `KINDS`, trees of `jax.ShapeDtypeStruct`, each with its sharding."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a run.

    Attributes:
        name: stage/what.
        mesh: where it runs.
        lower: to StableHLO, from shapes alone.
        held: all that lies on the devices while it runs, what it is given and what it makes included.
        given: of this, its arguments.
        made: of this, its results where they are not written over an argument.
        waiting: arguments of the next call, which lie on the devices by then too.
        useful_flops: that its result needs at least, over all devices (`models.flops`).
        turns: of loops whose number of turns is an argument, at most: by a part of that argument's name.
    """

    name: str
    mesh: Mesh
    lower: Callable[[], jax.stages.Lowered]
    held: Held
    given: Held
    made: Held = dataclasses.field(default_factory=dict)
    waiting: Any = None
    useful_flops: float = 0.0
    turns: Mapping[str, int] = dataclasses.field(default_factory=dict)


def join(*parts: Held) -> Held:
    """All that lies in these."""
    return {kind: [part[kind] for part in parts if kind in part] for kind in KINDS}


def bytes_by_kind(held: Held) -> dict[str, int]:
    """Bytes of a device's share, of each of `KINDS`."""
    return {kind: device_bytes(held.get(kind)) for kind in KINDS}


def device_bytes(tree: Any) -> int:
    """Bytes of a device's share of arrays that have a shape, a dtype and a sharding; none in the host's memory."""
    return sum(shard_bytes(x) for x in jax.tree.leaves(tree) if not is_on_host(x.sharding))


def shard_bytes(tree: Any) -> int:
    """Bytes of a device's share of arrays, wherever they lie."""

    def size(x):
        return math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize

    return sum(size(x) for x in jax.tree.leaves(tree))
