"""DAPO's penalty for responses that come near the limit of tokens."""

from __future__ import annotations


def overlong_penalty(tokens: int, limit: int, margin: int) -> float:
    """0 up to `limit - margin` tokens, from there straight down to -1 at `limit` (arXiv 2503.14476, equation 13)."""
    return -min(max(tokens - (limit - margin), 0) / margin, 1.0)
