"""What the devices of a mesh send each other in a compiled program, shared by the tests that look at layouts."""

from __future__ import annotations

import re


def collectives(text: str) -> dict[str, list[tuple[int, ...]]]:
    """Shapes that each kind of collective of a compiled program gives."""
    found = {}
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    for result, kind in re.findall(rf" = (.*?) ({kinds})(?:-start)?\(", text):
        shapes = [tuple(map(int, shape.split(","))) for shape in re.findall(r"[fsu]\d+\[([\d,]+)\]", result)]
        found.setdefault(kind, []).extend(shapes)
    return found
