"""Policy losses as pure functions of log-probabilities: clipped (PPO, DAPO), GSPO and CISPO.

docs/losses.md has a paragraph on each.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from perception_r1_jax.grpo.aggregation import masked_sum, token_weights
from perception_r1_jax.grpo.ratios import k3, log_ratio, sequence_log_ratio
from perception_r1_jax.records import AnyArray

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Clip:
    """Limits of a ratio of probabilities.

    Attributes:
        low: the ratio is clipped to [1 - low, 1 + high]; with 1 or more it has no lower limit.
        high: see `low`.
        dual: for a negative advantage A a clipped loss is at most -dual * A (arXiv 1912.09729); 0 for no limit.
    """

    low: float
    high: float
    dual: float

    def __call__(self, ratio: jax.Array) -> jax.Array:
        """The ratio within [1 - low, 1 + high]."""
        return jnp.clip(ratio, 1 - self.low, 1 + self.high)


def policy_loss(
    logp: Float[AnyArray, "B C"],
    old_logp: Float[AnyArray, "B C"],
    advantages: Float[AnyArray, "B ..."],
    mask: Bool[AnyArray, "B C"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.3,
    dual_clip: float = 3.0,
    aggregation: str = "sequence_mean",
    max_tokens: int | None = None,
    kind: str = "clipped",
) -> tuple[Float[Array, ""], Metrics]:
    """The policy loss of a whole batch, and what was clipped.

    Args:
        logp: log-probabilities of the responses' tokens under the policy.
        old_logp: the same before the batch's first update; the gradient does not flow into them.
        advantages: [B] one per response, or [B, 1] or [B, C].
        mask: true on the tokens that count; a response without any takes no part.
        clip_low: see `Clip`.
        clip_high: see `Clip`.
        dual_clip: see `Clip`.
        aggregation: see `aggregation.token_weights`.
        max_tokens: see `aggregation.token_weights`.
        kind: one of `LOSSES`.

    Returns:
        The loss, and means over tokens: `clip_fraction_low`, `clip_fraction_high`, `clip_fraction_dual` (of a clipped
        loss with a dual clip), `ratio_mean` and `approx_kl`, the k3 estimate of KL(old || policy).
    """
    weights = token_weights(mask, aggregation, max_tokens=max_tokens)
    losses, stats = token_losses(logp, old_logp, advantages, mask, Clip(clip_low, clip_high, dual_clip), kind=kind)
    tokens = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1)
    metrics = {name: masked_sum(values, mask) / tokens for name, values in stats.items()}
    return jnp.sum(weights * losses), metrics


def token_losses(
    logp: Float[AnyArray, "B C"],
    old_logp: Float[AnyArray, "B C"],
    advantages: Float[AnyArray, "B ..."],
    mask: Bool[AnyArray, "B C"],
    clip: Clip,
    *,
    kind: str = "clipped",
) -> tuple[Float[Array, "B C"], Metrics]:
    """The loss of each token, with `policy_loss`'s arguments.

    Returns:
        The losses, and for each metric its value at each token. What stands outside the mask, NaN
        included, touches neither these nor the gradient.

    Raises:
        ValueError: a kind of another name.
    """
    if kind not in LOSSES:
        raise ValueError(f"policy loss {kind!r} is unknown; choose one of {', '.join(LOSSES)}.")
    advantages = jnp.broadcast_to(advantages.reshape(logp.shape[0], -1), logp.shape)
    ratios = log_ratio(logp, jax.lax.stop_gradient(old_logp), mask)
    losses, stats = LOSSES[kind](jnp.where(mask, logp, 0.0), ratios, advantages, mask, clip)
    return losses, {**stats, "approx_kl": k3(ratios)}


def _clipped(logp, log_ratios, advantages, mask, clip):
    """max(-A ratio, -A clip(ratio)) (PPO, arXiv 1707.06347, equation 7)."""
    return _surrogate(jnp.exp(log_ratios), advantages, clip)


def _gspo(logp, log_ratios, advantages, mask, clip):
    """The same with one ratio per response (GSPO, arXiv 2507.18071, equations 5 and 7)."""
    ratio = jnp.exp(sequence_log_ratio(log_ratios, mask))
    return _surrogate(jnp.broadcast_to(ratio, log_ratios.shape), advantages, clip)


def _cispo(logp, log_ratios, advantages, mask, clip):
    """-A logp times the clipped ratio, which has no gradient (CISPO, arXiv 2506.13585, equations 4 and 5)."""
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratios))
    stats = {
        "clip_fraction_low": ratio < 1 - clip.low,
        "clip_fraction_high": ratio > 1 + clip.high,
        "ratio_mean": ratio,
    }
    return -clip(ratio) * advantages * logp, stats


LOSSES = {"clipped": _clipped, "gspo": _gspo, "cispo": _cispo}


def _surrogate(ratio, advantages, clip):
    plain, clipped = -advantages * ratio, -advantages * clip(ratio)
    losses = jnp.maximum(plain, clipped)
    is_clipped = clipped > plain
    stats = {
        "clip_fraction_low": is_clipped & (advantages < 0),
        "clip_fraction_high": is_clipped & (advantages > 0),
        "ratio_mean": ratio,
    }
    if clip.dual:
        ceiling = -advantages * clip.dual
        stats["clip_fraction_dual"] = (advantages < 0) & (ceiling < losses)
        losses = jnp.where(advantages < 0, jnp.minimum(losses, ceiling), losses)
    return losses, stats
