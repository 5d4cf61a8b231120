"""The weighted sum of reward terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def combine(terms: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    """`sum(weights[name] * terms[name])` over floats or arrays of one shape; NaN where a term is NaN.

    Raises:
        ValueError: a term without a weight or a weight without its term, which would be a silent zero.
    """
    if not terms or terms.keys() != weights.keys():
        raise ValueError(f"reward terms {sorted(terms)} with weights for {sorted(weights)}: give each term its weight")
    return sum(weights[name] * terms[name] for name in sorted(terms))
