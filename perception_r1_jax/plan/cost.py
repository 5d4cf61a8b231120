"""What a compiled program does, counted instruction by instruction: operations, bytes moved, bytes sent.

`cost_analysis()` of a compiled program counts a loop's body once. Here it counts as often as the loop turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from perception_r1_jax.plan.collectives import sent_bytes
from perception_r1_jax.plan.hlo import Computation, Instruction, Module
from perception_r1_jax.plan.loops import Caller, loop_turns
from perception_r1_jax.plan.products import product_flops
from perception_r1_jax.plan.traffic import moved_bytes

_WITHOUT_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "while"}
_WITHOUT_TRAFFIC |= {"conditional", "call", "opt-barrier", "partition-id", "replica-id"}


@dataclasses.dataclass
class Cost:
    """Of one device.

    Attributes:
        flops: of matrix products and convolutions, two a multiply-add.
        bytes_moved: that instructions read from and write to the device's memory.
        collective_bytes: that the device sends to others, by kind of collective (`plan.collectives`).
    """

    flops: float = 0.0
    bytes_moved: float = 0.0
    collective_bytes: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, other: Cost, times: float) -> None:
        """Adds another cost, so many times."""
        self.flops += times * other.flops
        self.bytes_moved += times * other.bytes_moved
        for kind, size in other.collective_bytes.items():
            self.collective_bytes[kind] = self.collective_bytes.get(kind, 0.0) + times * size


def module_cost(module: Module, turns: Mapping[str, int], second_branch: float, devices: int) -> Cost:
    """The cost of a program.

    Args:
        module: the program.
        turns: of loops whose number of turns is an argument of the program, by a part of the argument's name.
        second_branch: the share of turns in which a conditional of two branches takes the second.
        devices: that run it.
    """
    return _Counter(module, turns, second_branch, devices).of(module.entry, ())


class _Counter:
    def __init__(self, module: Module, turns: Mapping[str, int], second_branch: float, devices: int):
        self._module, self._turns, self._second_branch, self._devices = module, turns, second_branch, devices

    def of(self, computation: Computation, loops: tuple[Caller, ...], *, fused: bool = False) -> Cost:
        """The cost of a computation within these loops, the innermost last. A fused one moves nothing by itself."""
        total = Cost()
        for instruction in computation.instructions.values():
            total.add(self._own(computation, instruction, fused), 1)
            for times, called, inside in self._called(computation, instruction, loops):
                own_traffic = instruction.opcode in ("while", "conditional", "call")
                total.add(self.of(called, inside, fused=fused or not own_traffic), times)
        return total

    def _own(self, computation: Computation, instruction: Instruction, fused: bool) -> Cost:
        kind, sent = sent_bytes(computation, instruction, self._devices)
        silent = fused or instruction.opcode in _WITHOUT_TRAFFIC or instruction.opcode.endswith("-done")
        return Cost(
            flops=product_flops(computation, instruction),
            bytes_moved=0.0 if silent else moved_bytes(self._module, computation, instruction),
            collective_bytes={kind: sent} if sent else {},
        )

    def _called(
        self, computation: Computation, instruction: Instruction, loops: tuple[Caller, ...]
    ) -> Iterator[tuple[float, Computation, tuple[Caller, ...]]]:
        """How often an instruction runs which computation, and within which loops."""
        if instruction.opcode == "while":
            inside = (*loops, Caller(computation, instruction))
            yield loop_turns(self._module, inside, self._turns), self._named(instruction, "body")[0], inside
            return
        branches = self._named(instruction, "branch_computations", "false_computation", "true_computation")
        shares = (1 - self._second_branch, self._second_branch) if len(branches) == 2 else [1.0] * len(branches)
        yield from ((share, branch, loops) for share, branch in zip(shares, branches))
        for inner in self._named(instruction, "to_apply" if instruction.opcode == "call" else "calls"):
            yield 1.0, inner, loops

    def _named(self, instruction: Instruction, *attributes: str) -> list[Computation]:
        names = (name for attribute in attributes for name in instruction.called_by(attribute))
        return [self._module.computations[name] for name in names]
