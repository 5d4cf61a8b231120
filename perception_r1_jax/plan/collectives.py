"""Bytes that a device sends in a collective."""

from __future__ import annotations

import re

from perception_r1_jax.plan.hlo import Computation, Instruction

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
"""The sizes of the axes, in whatever order devices have there, and the axes that a group runs along."""

_ASYNC = 'custom_call_target="AsyncCollective{}"'


def sent_bytes(computation: Computation, instruction: Instruction, devices: int) -> tuple[str, float]:
    """The kind of a collective, and the bytes that each device sends when it runs as a ring; ("", 0) for all else.

    With n devices in a group, (n - 1) / n of the whole array goes through each link to gather or to scatter it, and
    twice as much to reduce it for all (Patarasuk and Yuan, 2009).
    """
    kind = instruction.opcode.removesuffix("-start")
    if not is_collective(instruction) or is_under_way(computation):
        return "", 0.0
    taken = sum(shape.size for name in instruction.operands for shape in computation.instructions[name].shapes)
    share = 1 - 1 / _group_size(instruction, devices)
    if kind == "all-reduce":
        # TPUs scatter a sum by a fusion that looks like the whole sum and a slice of it.
        return ("reduce-scatter", taken * share) if "reduce-scatter" in computation.name else (kind, 2 * taken * share)
    if kind == "all-gather":
        return kind, taken * _group_size(instruction, devices) * share
    if kind.startswith("collective"):
        return kind, float(taken)
    return kind, taken * share


def is_collective(instruction: Instruction) -> bool:
    """Whether devices exchange something in it."""
    return instruction.opcode.removesuffix("-start") in _KINDS


def begins(fused: Computation) -> bool:
    """Whether a fusion begins a collective that others go on with."""
    return _ASYNC.format("Start") in fused.root.rest


def ends(fused: Computation) -> bool:
    """Whether a fusion only waits for the end of a collective."""
    return _ASYNC.format("Done") in fused.root.rest


def is_under_way(fused: Computation) -> bool:
    """Whether a fusion goes on with a collective that another has begun, or ends it.

    A TPU's compiler fuses a collective with all the work that it is hidden behind, and each of these fusions names it.
    """
    return fused.name.startswith("async_collective_fusion") or ends(fused)


def _group_size(instruction: Instruction, devices: int) -> int:
    """Devices that take part in it together: listed, as groups x size, or as axes of a mesh; all where none are named.

    Raises:
        ValueError: they are named in another way.
    """
    if listed := instruction.attribute(r"replica_groups=\{\{([\d,]*)\}"):
        return len(listed.split(","))
    if counted := instruction.attribute(r"replica_groups=\[\d+,(\d+)\]"):
        return int(counted)
    if mesh := _MESH.search(instruction.rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        size = 1
        for axis in re.findall(r"'(\w+)'", mesh[2]):
            size *= int(sizes[axis])
        return size
    if instruction.attribute(r"replica_groups=(?!\{\})(\S)"):
        raise ValueError(f"which devices take part in {instruction.name} cannot be read: {instruction.rest[:200]}")
    return devices
