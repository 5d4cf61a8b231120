"""What tells how well a response sees: a module that knows the truth of each picture.

Its functions get a problem's row, with all its columns. Neither the policy nor the judge ever sees what they say.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from perception_r1_jax.errors import UserError

RIGHT, MISREAD, ABSENT = "right", "misread", "absent"
"""The states of a fact that a solution needs: stated as it is, stated otherwise or of something else, not stated."""

FUNCTIONS = ("perceive", "probe", "probe_right")
"""What an evaluation asks. A report asks for `reflected(annotation, response)` too: what an ideal judge would say; and
the ablation for `traits(row, response)`, what it counts besides: `looks_first` and `wrong_kinds`."""

Row = Mapping[str, Any]


class Perception(Protocol):
    """How well one response sees.

    Attributes:
        perceived: all needed facts are stated rightly, and nothing that is stated about the picture is wrong.
        right: number of stated facts that are true of the picture.
        wrong: number of stated facts that are not.
        states: RIGHT, MISREAD or ABSENT for each needed fact of the row, in the row's order.
    """

    perceived: bool
    right: int
    wrong: int
    states: tuple[str, ...]


class Checker(Protocol):
    """The functions of a checking module."""

    def perceive(self, row: Row, response: str) -> Perception:
        """Compares what a response states with the picture."""

    def probe(self, row: Row) -> tuple[str, str]:
        """A question about one fact of the picture, the same at each call, and its answer."""

    def probe_right(self, row: Row, response: str) -> bool:
        """Whether a response to that question gives its answer."""


def load_checker(module: str, functions: Sequence[str] = FUNCTIONS) -> Checker:
    """Imports a checking module by its dotted name.

    Args:
        module: the name.
        functions: what it must have.

    Raises:
        UserError: it cannot be imported, or lacks one of the functions.
    """
    try:
        checker = importlib.import_module(module)
    except Exception as error:
        raise UserError(
            f"config.evaluation.checker {module!r} cannot be imported: {type(error).__name__}: {error}. The module "
            "must be installed, or its folder in the environment variable PYTHONPATH."
        ) from error
    missing = [name for name in functions if not callable(getattr(checker, name, None))]
    if missing:
        raise UserError(f"config.evaluation.checker {module!r} has no function {', '.join(missing)}.")
    return checker
