"""How far apart two policies are, token by token, from the log-probabilities that both give to the same tokens.

What stands outside the mask, NaN included, touches neither a result nor its gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from perception_r1_jax.records import AnyArray

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before exp, which keeps it finite in float32."""


def log_ratio(
    logp: Float[AnyArray, "B C"], other: Float[AnyArray, "B C"], mask: Bool[AnyArray, "B C"]
) -> Float[Array, "B C"]:
    """The difference, clamped; 0 outside the mask, where both are replaced before it is taken: NaN times 0 is NaN."""
    return jnp.clip(jnp.where(mask, logp, 0.0) - jnp.where(mask, other, 0.0), -MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_log_ratio(log_ratios: Float[Array, "B C"], mask: Bool[AnyArray, "B C"]) -> Float[Array, "B 1"]:
    """Mean of a response's log-ratios, as `log_ratio` gives them: GSPO's ratio (arXiv 2507.18071, equation 7)."""
    lengths = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
    return jnp.sum(log_ratios, axis=1, keepdims=True) / jnp.maximum(lengths, 1.0)


def k3(log_ratios: Float[Array, "B C"]) -> Float[Array, "B C"]:
    """An estimate of KL(other || policy) from the other's samples: exp(d) - 1 - d (joschu.net/blog/kl-approx.html)."""
    return jnp.expm1(log_ratios) - log_ratios


def rollout_mismatch(
    old_logp: Float[AnyArray, "B C"], rollout_logp: Float[AnyArray, "B C"], mask: Bool[AnyArray, "B C"]
) -> dict[str, Float[Array, "B C"]]:
    """How far the sampler's log-probs are from the trainer's under the same weights.

    Returns:
        `rollout_train_logp_diff` = |old - rollout| and `token_mult_prob_error` = exp |old - rollout| of each token.
    """
    difference = jnp.abs(log_ratio(jax.lax.stop_gradient(old_logp), rollout_logp, mask))
    return {"rollout_train_logp_diff": difference, "token_mult_prob_error": jnp.exp(difference)}


def truncated_importance(
    old_logp: Float[AnyArray, "B C"], rollout_logp: Float[AnyArray, "B C"], mask: Bool[AnyArray, "B C"], cap: float
) -> tuple[Float[Array, "B C"], dict[str, Array]]:
    """min(exp(old - rollout), cap), the weight of a token that the sampler drew from other numbers than the trainer's.

    Truncated importance sampling between rollout and trainer (Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training", https://fengyao.notion.site/off-policy-rl). No gradient flows through it.

    Returns:
        The weights, and for each metric its value at each token: `importance_mean`, `importance_capped`.
    """
    ratio = jnp.exp(log_ratio(jax.lax.stop_gradient(old_logp), rollout_logp, mask))
    weights = jnp.minimum(ratio, cap)
    return weights, {"importance_mean": weights, "importance_capped": ratio > cap}
