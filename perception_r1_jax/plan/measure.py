"""Compiles a program for its devices and reads off what it takes."""

from __future__ import annotations

import dataclasses
import re
import time

import jax

from perception_r1_jax.errors import UserError
from perception_r1_jax.plan.cost import Cost, module_cost
from perception_r1_jax.plan.hlo import Module, parse
from perception_r1_jax.plan.programs import Program, bytes_by_kind, device_bytes
from perception_r1_jax.plan.topologies import Target

ACTIVATIONS = "activations"
LARGEST = 5
"""Arrays of a program that are named where it does not fit."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A compiled program on one device.

    Attributes:
        name: of the program.
        bytes: of each of `programs.KINDS` that lies there while it runs, and of its own activations.
        memory: bytes that there are.
        refusal: why the compiler did not make it within that memory; "" where it did. `bytes` then holds what it asked
            for, which may be less than the whole.
        cost: None where there is no program at all.
        useful_flops: of the program, over all devices.
        compile_seconds: lowering included.
        largest: the largest arrays that it makes, as (bytes, shape and origin).
    """

    name: str
    bytes: dict[str, int]
    memory: int
    refusal: str
    cost: Cost | None
    useful_flops: float
    compile_seconds: float
    largest: tuple[tuple[int, str], ...]

    @property
    def total(self) -> int:
        """Bytes of all together."""
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        """Whether it can run."""
        return not self.refusal and self.total <= self.memory


def measure(program: Program, target: Target, second_branch: float) -> Measured:
    """Compiles a program within the memory that is left to it; where it does not go in there, within all of it.

    Args:
        program: of a run.
        target: its devices.
        second_branch: as of `cost.module_cost`.

    Raises:
        UserError: the compiler is of another age than JAX.
    """
    started = time.perf_counter()
    with jax.set_mesh(program.mesh):
        lowered = program.lower()
    held, passed = bytes_by_kind(program.held), sum(bytes_by_kind(program.given).values())
    passed += sum(bytes_by_kind(program.made).values())
    waiting = device_bytes(program.waiting)
    room = target.memory - sum(held.values()) + passed - waiting
    compiled, refusal = _compile(lowered, target, room)
    if compiled is None and room < target.memory:
        compiled, _ = _compile(lowered, target, target.memory)
    seconds = time.perf_counter() - started
    if compiled is None:
        own, cost, largest = _asked_for(refusal) - passed, None, ()
    else:
        module = parse(_text(compiled))
        own = _needed(compiled) - passed
        cost = module_cost(module, program.turns, second_branch, len(target.devices))
        largest = largest_arrays(module)
    return Measured(
        name=program.name,
        bytes={**held, ACTIVATIONS: max(own, 0) + waiting},
        memory=target.memory,
        refusal=refusal,
        cost=cost,
        useful_flops=program.useful_flops,
        compile_seconds=seconds,
        largest=largest,
    )


def _compile(lowered: jax.stages.Lowered, target: Target, room: int) -> tuple[jax.stages.Compiled | None, str]:
    """The program, or what the compiler says of the memory that it lacks."""
    if room <= 0:
        return None, "what lies on the devices beside it leaves no memory"
    options = {"xla_tpu_max_hbm_size_mib": str(room >> 20)} if target.is_tpu else None
    try:
        return lowered.compile(compiler_options=options), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error)


def _text(compiled: jax.stages.Compiled) -> str:
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"jax {jax.__version__} cannot read what the installed libtpu has compiled: they are of different ages. "
            "Install the libtpu that goes with it: pip install -e .[plan]"
        ) from error


def _needed(compiled: jax.stages.Compiled) -> int:
    """Bytes at its fullest moment, arguments and results included, and its code.

    The peak is what the compiler holds against its limit. Adding up arguments and temporary arrays gives more where
    arguments are donated: libtpu counts them among both.
    """
    stats = compiled.memory_analysis()
    return stats.peak_memory_in_bytes + stats.generated_code_size_in_bytes


def _asked_for(refusal: str) -> int:
    """Bytes that the compiler's refusal names; 0 where it names none."""
    found = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds|Used ([\d.]+)([KMGT]?) of", refusal)
    if not found:
        return 0
    size, unit = found[1] or found[3], found[2] or found[4] or ""
    return int(float(size) * _UNITS[unit])


def largest_arrays(module: Module) -> tuple[tuple[int, str], ...]:
    """The largest arrays in memory that instructions make, each shape once, with what they come from."""
    found = {}
    for computation in module.computations.values():
        for x in computation.instructions.values():
            if x.opcode in ("parameter", "get-tuple-element", "bitcast", "tuple", "while", "constant", "conditional"):
                continue
            for shape in x.shapes:
                if shape.in_memory:
                    origin = x.attribute(r'op_name="([^"]*)"') or x.opcode
                    found.setdefault(shape.text, (shape.size, f"{shape.text} {_short(origin)}"))
    return tuple(sorted(found.values(), reverse=True)[:LARGEST])


def _short(origin: str) -> str:
    """The last parts of the path to an operation."""
    parts = [part for part in origin.split("/") if part not in ("while", "body", "closed_call", "checkpoint")]
    return "/".join(parts[-3:])
