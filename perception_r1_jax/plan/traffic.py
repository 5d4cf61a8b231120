"""Bytes that an instruction reads from and writes to a device's memory.

A fusion reads its arguments and writes its result, and nothing between. Where it only takes a slice of an argument, or
writes over a part of one, that part counts. On a TPU what lies in the memory of the core itself does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

from perception_r1_jax.plan.collectives import begins, ends, is_collective, is_under_way
from perception_r1_jax.plan.hlo import Computation, Instruction, Module, Shape

_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""What writes over a part of its first operand, and which operand is new."""


def moved_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes read and written by an instruction that is in no fusion."""
    if instruction.opcode == "fusion":
        fused = _fused(module, instruction)
        if ends(fused):
            return 0.0
        if begins(fused):
            return moved_bytes(module, fused, next(filter(is_collective, fused.instructions.values())))
        return sum(_read(module, fused, x) for x in fused.parameters) + _written(module, fused, instruction.shapes)
    if instruction.opcode.endswith("-start"):
        return _of_start(computation, instruction)
    if instruction.opcode in _SLICES:
        return 2.0 * _size(instruction)
    if instruction.opcode in _UPDATES:
        return 2.0 * _size(computation.instructions[instruction.operands[_UPDATES[instruction.opcode]]])
    return float(_size(instruction) + sum(_size(computation.instructions[name]) for name in instruction.operands))


def _of_start(computation: Computation, start: Instruction) -> float:
    """What is moved between the start of an instruction and its end. The start's results name its operands again."""
    taken = [shape for name in start.operands for shape in computation.instructions[name].shapes]
    made = [shape for shape in start.shapes if shape.dims]  # the others are marks
    for shape in taken:
        if shape in made:
            made.remove(shape)
    read = made if start.opcode == "slice-start" else taken
    source_in_memory = any(shape.in_memory for shape in taken)
    written = sum(shape.size for shape in made if shape.in_memory)
    return float(written + (sum(shape.size for shape in read) if source_in_memory else 0))


def _fused(module: Module, fusion: Instruction) -> Computation:
    return module.computations[fusion.called_by("calls")[0]]


def _size(instruction: Instruction) -> int:
    return sum(shape.size for shape in instruction.shapes if shape.in_memory)


def _read(module: Module, fused: Computation, argument: Instruction) -> float:
    """What a fusion reads of an argument: the slices that it takes, and the whole where it takes the whole."""
    if not argument.shapes[0].in_memory:
        return 0.0
    return float(min(_taken(module, fused, argument), argument.shapes[0].size))


def _taken(module: Module, fused: Computation, source: Instruction) -> float:
    """Bytes that all users of an array in a fusion take of it together."""
    total = 0.0
    for user in fused.users[source.name]:
        if _passes_on(fused, user):
            continue
        for place, name in enumerate(user.operands):
            if name != source.name:
                continue
            if user.opcode == "bitcast" or _is_bitcast(module, user):
                total += _taken(module, fused, user)
            elif user.opcode == "fusion":  # one in another
                inner = _fused(module, user)
                total += _taken(module, inner, inner.parameters[place])
            elif user.opcode in _SLICES and place == 0:
                total += sum(shape.size for shape in user.shapes)
            elif user.opcode not in _UPDATES or place > 0:  # what is written over is not read
                total += source.shapes[0].size
    return total


def _passes_on(fused: Computation, user: Instruction) -> bool:
    """Whether a fusion does nothing with what an instruction takes: it is a result as it is, or a collective's."""
    return (user is fused.root and user.opcode == "tuple") or (is_collective(user) and is_under_way(fused))


def _is_bitcast(module: Module, user: Instruction) -> bool:
    """Whether it is a fusion of bitcasts alone."""
    if user.opcode != "fusion":
        return False
    return all(x.opcode in ("parameter", "bitcast") for x in _fused(module, user).instructions.values())


def _written(module: Module, fused: Computation, shapes: Sequence[Shape]) -> float:
    """What a fusion writes: of an array that it writes over, the part that is new."""
    root = fused.root
    parts = [fused.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    sizes = (_new(module, fused, part) for part in parts)
    return float(sum(size for size, shape in zip(sizes, shapes) if shape.in_memory))


def _new(module: Module, fused: Computation, part: Instruction) -> int:
    """Bytes of a result of a fusion that are new."""
    if part.opcode == "parameter" or (is_collective(part) and is_under_way(fused)):
        return 0
    if part.opcode == "bitcast":
        return _new(module, fused, fused.instructions[part.operands[0]])
    if part.opcode == "fusion" and len(part.shapes) == 1:
        inner = _fused(module, part)
        return _new(module, inner, inner.root)
    if part.opcode in _UPDATES:
        return fused.instructions[part.operands[_UPDATES[part.opcode]]].shapes[0].size
    return part.shapes[0].size
