"""The text of a compiled program, as computations of instructions. Only what `cost` asks for is read."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64}
BITS |= {"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0}

_SHAPE = re.compile(r"\b(token|opaque|pred|[suf]\d+\w*|bf16|c64|c128)\[([\d,<=]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: its type and dimensions, bytes, and whether it lies in the device's main memory."""

    dtype: str
    dims: tuple[int, ...]
    size: int
    in_memory: bool

    @property
    def text(self) -> str:
        """As the compiler writes it, without its layout."""
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: unique in its computation.
        opcode: what it does.
        shapes: of its result, the elements of a tuple in their order.
        operands: names of the instructions that it takes.
        rest: its text after the operands.
        literal: between its parentheses: the value of a constant, the number of a parameter.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    literal: str

    @cached_property
    def called(self) -> list[tuple[str, list[str]]]:
        """Computations that it calls, and the attribute that names them."""
        return [(what, _NAME.findall(names)) for what, names in _CALLED.findall(self.rest)]

    def called_by(self, attribute: str) -> list[str]:
        """Those that one attribute names."""
        return [name for what, names in self.called if what == attribute for name in names]

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in the text after the operands."""
        found = re.search(pattern, self.rest)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in their order; the last one, or that marked as such, is the root."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    @cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """Who takes each instruction."""
        users = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users

    @cached_property
    def parameters(self) -> Sequence[Instruction]:
        """Its parameters, by their number."""
        found = [x for x in self.instructions.values() if x.opcode == "parameter"]
        return sorted(found, key=lambda x: int(x.literal))


@dataclasses.dataclass(frozen=True)
class Module:
    """A program."""

    computations: Mapping[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Reads what `jax.stages.Compiled.as_text` gives."""
    computations, entry, lines = {}, None, None
    for line in text.splitlines():
        if lines is None:
            if found := _COMPUTATION.match(line):
                lines = []
        elif line == "}":
            computation = _computation(found[2], lines)
            computations[computation.name] = computation
            entry, lines = computation if found[1] else entry, None
        elif _INSTRUCTION.match(line):
            lines.append(line)
        else:
            lines[-1] += line  # the attributes of a Pallas kernel have line breaks
    return Module(computations, entry)


def _computation(name: str, lines: Sequence[str]) -> Computation:
    found = [_INSTRUCTION.match(line) for line in lines]
    instructions = [_instruction(each[2], each[3]) for each in found]
    root = next((made for made, each in zip(instructions, found) if each[1]), instructions[-1])
    return Computation(name, {made.name: made for made in instructions}, root)


def _instruction(name: str, text: str) -> Instruction:
    """From `f32[2]{0} add(%a, %b), metadata={...}`."""
    opcode = _OPCODE.search(text, _type_end(text))
    end = _closing(text, opcode.end())
    inside, rest = text[opcode.end() : end], text[end + 1 :]
    shapes = tuple(_shape(*found) for found in _SHAPE.findall(text[: opcode.start()]))
    return Instruction(name, opcode[1], shapes, tuple(_NAME.findall(inside)), rest, inside)


def _type_end(text: str) -> int:
    """Where the type of the result ends: a tuple's has spaces and parentheses of its own."""
    return _closing(text, 1) if text.startswith("(") else 0


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one before `start`."""
    depth = 1
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"no closing parenthesis in {text[:200]!r}")


def _shape(dtype: str, dims: str, layout: str) -> Shape:
    sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
    bits = BITS.get(dtype, 8)  # the float8 types
    return Shape(dtype, sizes, math.ceil(math.prod(sizes) * bits / 8), "S(" not in layout)
