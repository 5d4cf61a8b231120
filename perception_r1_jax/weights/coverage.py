"""Full coverage or an error: what a checkpoint holds against what its model needs."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

from perception_r1_jax.weights.safetensors_io import CheckpointError

NAMED = 10

Shape = tuple[int, ...]


def check_coverage(
    directory: Path, expected: Mapping[str, Shape], found: Sequence[tuple[str, Shape]], also: Sequence[str] = ()
) -> None:
    """Compares the names and shapes that a directory holds with those that its config asks for.

    Args:
        directory: for the message.
        expected: name -> shape.
        found: (name, shape) of everything there.
        also: further problems to report with the rest.

    Raises:
        CheckpointError: one message with the count and the first names of all that is missing, unknown,
            there twice, or of another shape.
    """
    counts = collections.Counter(name for name, _ in found)
    shapes = [
        f"{name} {list(shape)} instead of {list(expected[name])}"
        for name, shape in found
        if shape != expected.get(name, shape)
    ]
    problems = [
        *_describe("missing", [name for name in expected if name not in counts]),
        *_describe("unknown", [name for name in counts if name not in expected]),
        *_describe("there more than once", [name for name, count in counts.items() if count > 1]),
        *_describe("of another shape", shapes),
        *also,
    ]
    if problems:
        listing = "".join(f"\n  {problem}" for problem in problems)
        raise CheckpointError(f"the weights in {directory} are not those of the model in its config.json:{listing}")


def _describe(kind: str, names: list[str]) -> list[str]:
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{len(names)} {kind}: {', '.join(names[:NAMED])}{more}"] if names else []
