"""A reward of the user's own: a function of (problem row, response), named by its import path."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from perception_r1_jax.errors import UserError

RewardFunction = Callable[[Mapping[str, Any], str], float]
"""Takes the problem's row with all its columns, and the response's text; returns a finite number."""


def load_reward(path: str) -> RewardFunction:
    """Imports "package.module:function".

    Raises:
        UserError: not of that form, the module cannot be imported, or it has no such function.
    """
    module_name, _, name = path.partition(":")
    if not (module_name and name):
        raise UserError(f"config.reward.function is {path!r}; write it as 'package.module:function'")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise UserError(
            f"config.reward.function {path!r} cannot be imported: {type(error).__name__}: {error}. The module must be "
            "installed, or its folder in the environment variable PYTHONPATH."
        ) from error
    if not callable(function):
        raise UserError(f"config.reward.function {path!r} is a {type(function).__name__}, not a function")
    return function


def custom_reward(function: RewardFunction, row: Mapping[str, Any], response: str) -> tuple[float, str | None]:
    """The function's value and None; NaN and the reason where it raises or returns no finite number."""
    try:
        value = float(function(row, response))
    except Exception as error:
        return math.nan, f"{type(error).__name__}: {error}"
    return (value, None) if math.isfinite(value) else (math.nan, f"returned {value}")
