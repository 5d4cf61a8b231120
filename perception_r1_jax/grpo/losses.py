"""The clipped policy loss and its KL term, as pure functions of log-probabilities.

How tokens are averaged is put into one array of weights, made once from the mask of the whole batch. A loss is
then the sum of weight times token loss, so the sum over any split into micro-batches is the loss of the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from perception_r1_jax.records import AnyArray

AGGREGATIONS = ("sequence_mean", "token_mean", "constant", "micro_batch_mean")
KL_ESTIMATORS = ("k1", "k2", "k3")

PAPER_MICRO_BATCH = 8
"""Responses over whose tokens the authors' code averages at a time."""

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before exp, which keeps it finite in float32."""

Metrics = dict[str, jax.Array]


def policy_loss(
    logp: Float[AnyArray, "B C"],
    old_logp: Float[AnyArray, "B C"],
    advantages: Float[AnyArray, "B ..."],
    mask: Bool[AnyArray, "B C"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.3,
    dual_clip: float | None = 3.0,
    aggregation: str = "sequence_mean",
    max_tokens: int | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The clipped loss of a whole batch, and what was clipped.

    Args:
        logp: log-probabilities of the responses' tokens under the policy.
        old_logp: the same before the batch's first update; the gradient does not flow into them.
        advantages: [B] one per response, or [B, 1] or [B, C].
        mask: true on the tokens that count; a response without any takes no part.
        clip_low: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        clip_high: see `clip_low`.
        dual_clip: for a negative advantage A the loss is at most -dual_clip * A (arXiv 1912.09729); None for no limit.
        aggregation: see `token_weights`.
        max_tokens: see `token_weights`.

    Returns:
        The loss, and means over tokens: `clip_fraction_low`, `clip_fraction_high`, `clip_fraction_dual` (where
        there is a dual clip), `ratio_mean` and `approx_kl`, the k3 estimate of KL(old || policy).
    """
    weights = token_weights(mask, aggregation, max_tokens=max_tokens)
    losses, stats = token_losses(
        logp, old_logp, advantages, mask, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    tokens = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1)
    metrics = {name: masked_sum(values, mask) / tokens for name, values in stats.items()}
    return jnp.sum(weights * losses), metrics


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


def token_losses(
    logp: Float[AnyArray, "B C"],
    old_logp: Float[AnyArray, "B C"],
    advantages: Float[AnyArray, "B ..."],
    mask: Bool[AnyArray, "B C"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Float[Array, "B C"], Metrics]:
    """max(-A ratio, -A clip(ratio)) of each token (PPO, arXiv 1707.06347, equation 7), with `policy_loss`'s arguments.

    Returns:
        The losses, and for each metric its value at each token. What stands outside the mask, NaN
        included, touches neither these nor the gradient.
    """
    advantages = jnp.broadcast_to(advantages.reshape(logp.shape[0], -1), logp.shape)
    log_ratio = _log_ratio(logp, jax.lax.stop_gradient(old_logp), mask)
    ratio = jnp.exp(log_ratio)
    plain = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    losses = jnp.maximum(plain, clipped)
    is_clipped = clipped > plain
    stats = {
        "clip_fraction_low": is_clipped & (advantages < 0),
        "clip_fraction_high": is_clipped & (advantages > 0),
        "ratio_mean": ratio,
        "approx_kl": _k3(log_ratio),
    }
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        stats["clip_fraction_dual"] = (advantages < 0) & (ceiling < losses)
        losses = jnp.where(advantages < 0, jnp.minimum(losses, ceiling), losses)
    return losses, {name: jax.lax.stop_gradient(values) for name, values in stats.items()}


def token_kl(
    logp: Float[AnyArray, "B C"], reference_logp: Float[AnyArray, "B C"], mask: Bool[AnyArray, "B C"], estimator: str
) -> Float[Array, "B C"]:
    """Estimates of KL(policy || reference) from the sampled tokens (http://joschu.net/blog/kl-approx.html).

    With d = logp - reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. As a loss k1 has no gradient in
    expectation; k2's is that of the true KL.

    Raises:
        ValueError: an estimator of another name.
    """
    log_ratio = _log_ratio(logp, jax.lax.stop_gradient(reference_logp), mask)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * jnp.square(log_ratio)
    if estimator == "k3":
        return _k3(-log_ratio)
    raise ValueError(f"KL estimator {estimator!r} is unknown; choose one of {', '.join(KL_ESTIMATORS)}.")


def masked_sum(values: Shaped[AnyArray, "B C"], mask: Bool[AnyArray, "B C"]) -> Float[Array, ""]:
    """float32 sum of the values inside the mask."""
    return jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))


def _log_ratio(logp, other, mask):
    """The difference, clamped. What is outside the mask is replaced before the subtraction: NaN times 0 is NaN."""
    return jnp.clip(jnp.where(mask, logp, 0.0) - jnp.where(mask, other, 0.0), -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _k3(log_ratio):
    return jnp.expm1(log_ratio) - log_ratio


def _at_least_one(count):
    return jnp.maximum(count, 1.0)


def _micro_batch_tokens(lengths):
    """[B, 1]: tokens in a response's run of 8, times the number of runs that have any."""
    rows = lengths.shape[0]
    padded = jnp.pad(lengths[:, 0], (0, -rows % PAPER_MICRO_BATCH))
    tokens = jnp.sum(padded.reshape(-1, PAPER_MICRO_BATCH), axis=1)
    runs = _at_least_one(jnp.sum(tokens > 0, dtype=jnp.float32))
    return jnp.repeat(_at_least_one(tokens), PAPER_MICRO_BATCH)[:rows, None] * runs
