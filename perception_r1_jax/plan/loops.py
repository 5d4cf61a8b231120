"""How often a compiled loop turns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from perception_r1_jax.plan.hlo import Computation, Instruction, Module

_KNOWN = re.compile(r'known_trip_count":?\{"?n"?:"?(\d+)')
_SAME_VALUE = ("copy", "bitcast", "reshape", "convert")


class Caller(NamedTuple):
    """A while or fusion instruction, and the computation that it stands in."""

    computation: Computation
    instruction: Instruction


def loop_turns(module: Module, callers: tuple[Caller, ...], turns: Mapping[str, int]) -> float:
    """How often a loop turns at most.

    The compiler's word counts, where it has one. Else the loop is taken to count from 0, by what its body adds, and to
    go on while its count is below a bound, whatever else may end it. The bound is a constant, or is followed out
    through the loops around to an argument of the program that `turns` names.

    Args:
        module: the program.
        callers: the loops around this one, and itself as the last.
        turns: by a part of the argument's name.

    Raises:
        ValueError: nothing says how often it turns.
    """
    loop = callers[-1].instruction
    if found := _KNOWN.search(loop.rest):
        return float(found[1])
    condition, body = (module.computations[loop.called_by(what)[0]] for what in ("condition", "body"))
    counts = []
    for count, bound in _bounds(module, condition, callers, turns):
        if bound is not None:
            counts.append(math.ceil(bound / _step(body, count, callers)))
    if not counts:
        raise ValueError(f"nothing says how often the loop {loop.name} turns.")
    return float(min(counts))


def _bounds(
    module: Module, condition: Computation, callers: tuple[Caller, ...], turns: Mapping[str, int]
) -> Iterator[tuple[int | None, int | None]]:
    """What is compared with what, in the condition or a fusion within it.

    The first is the count, by its place in what the loop carries; the second is the bound. None for what is not known.
    """
    for instruction in condition.instructions.values():
        if instruction.opcode == "compare" and "direction=LT" in instruction.rest:
            count, bound = (condition.instructions[name] for name in instruction.operands)
            yield _place(condition, count, callers), _value(condition, bound, callers, turns)
        for name in instruction.called_by("calls"):
            yield from _bounds(module, module.computations[name], (*callers, Caller(condition, instruction)), turns)


def _place(computation: Computation, at: Instruction, callers: tuple[Caller, ...]) -> int | None:
    """Which element this is of what the loop around carries; None where it is none."""
    at = _unchanged(computation, at)
    if at.opcode == "parameter" and callers[-1].instruction.opcode == "fusion":
        return _place(callers[-1].computation, _passed(computation, at, callers[-1]), callers[:-1])
    return _element(at) if at.opcode == "get-tuple-element" else None


def _step(body: Computation, place: int | None, callers: tuple[Caller, ...]) -> int:
    """What a turn adds to an element of what the loop carries; 1 where that is not seen."""
    if place is None or body.root.opcode != "tuple":
        return 1
    after = _unchanged(body, body.instructions[body.root.operands[place]])
    if after.opcode != "add":
        return 1
    added = (body.instructions[name] for name in after.operands)
    return next((value for each in added if (value := _value(body, each, callers, {}))), 1)


def _unchanged(computation: Computation, at: Instruction) -> Instruction:
    """Where a value comes from that is only copied or converted."""
    while at.opcode in _SAME_VALUE:
        at = computation.instructions[at.operands[0]]
    return at


def _element(at: Instruction) -> int:
    return int(at.attribute(r"index=(\d+)"))


def _value(
    computation: Computation, at: Instruction, callers: tuple[Caller, ...], turns: Mapping[str, int]
) -> int | None:
    """The value of a scalar: a constant, or what came unchanged from an argument of the program."""
    at = _unchanged(computation, at)
    if at.opcode == "constant":
        return int(at.literal) if re.fullmatch(r"-?\d+", at.literal) else None
    if not callers:
        named = (count for name, count in turns.items() if at.opcode == "parameter" and name in at.rest)
        return next(named, None)
    outside = _passed(computation, at, callers[-1])
    return None if outside is None else _value(callers[-1].computation, outside, callers[:-1], turns)


def _passed(computation: Computation, at: Instruction, caller: Caller) -> Instruction | None:
    """What the caller passes as this: an argument of a fusion, or an element of what a loop carries, as it starts."""
    known = caller.computation.instructions
    if caller.instruction.opcode == "fusion":
        return known[caller.instruction.operands[int(at.literal)]] if at.opcode == "parameter" else None
    start = known[caller.instruction.operands[0]]
    if at.opcode != "get-tuple-element" or start.opcode != "tuple":
        return None
    if computation.instructions[at.operands[0]].opcode != "parameter":
        return None
    return known[start.operands[_element(at)]]
