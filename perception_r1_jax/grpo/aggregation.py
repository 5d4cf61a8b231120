"""How token losses are averaged into one number.

All of it is in one array of weights, made once from the mask of the whole batch. A loss is then the sum of weight
times token loss, so the sum over any split into micro-batches is the loss of the batch.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from perception_r1_jax.records import AnyArray

AGGREGATIONS = ("sequence_mean", "token_mean", "constant", "micro_batch_mean")

PAPER_MICRO_BATCH = 8
"""Responses over whose tokens the authors' code averages at a time."""


def token_weights(
    mask: Bool[AnyArray, "B C"], aggregation: str, *, max_tokens: int | None = None
) -> Float[Array, "B C"]:
    """The weight of each token in the loss of the batch; 0 outside the mask.

    - `sequence_mean`: mean over a response's tokens, then over the responses that have any (arXiv 2402.03300).
    - `token_mean`: mean over all tokens of the batch (DAPO, arXiv 2503.14476).
    - `constant`: sum over a response's tokens divided by `max_tokens`, by default C, then mean over responses
      (Dr. GRPO, arXiv 2503.20783). Give the longest response allowed, so that the bucket does not matter.
    - `micro_batch_mean`: token mean over each run of 8 responses, then the mean of these, as Perception-R1's
      authors' code has it.

    Raises:
        ValueError: an aggregation of another name.
    """
    weights = mask.astype(jnp.float32)
    lengths = jnp.sum(weights, axis=1, keepdims=True)
    responses = _at_least_one(jnp.sum(lengths > 0, dtype=jnp.float32))
    if aggregation == "sequence_mean":
        return weights / _at_least_one(lengths) / responses
    if aggregation == "token_mean":
        return weights / _at_least_one(jnp.sum(lengths))
    if aggregation == "constant":
        return weights / (max_tokens or mask.shape[1]) / responses
    if aggregation == "micro_batch_mean":
        return weights / _micro_batch_tokens(lengths)
    raise ValueError(f"aggregation {aggregation!r} is unknown; choose one of {', '.join(AGGREGATIONS)}.")


def masked_sum(values: Shaped[AnyArray, "B C"], mask: Bool[AnyArray, "B C"]) -> Float[Array, ""]:
    """float32 sum of the values inside the mask."""
    return jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))


def _at_least_one(count):
    return jnp.maximum(count, 1.0)


def _micro_batch_tokens(lengths):
    """[B, 1]: tokens in a response's run of 8, times the number of runs that have any."""
    rows = lengths.shape[0]
    padded = jnp.pad(lengths[:, 0], (0, -rows % PAPER_MICRO_BATCH))
    tokens = jnp.sum(padded.reshape(-1, PAPER_MICRO_BATCH), axis=1)
    runs = _at_least_one(jnp.sum(tokens > 0, dtype=jnp.float32))
    return jnp.repeat(_at_least_one(tokens), PAPER_MICRO_BATCH)[:rows, None] * runs
