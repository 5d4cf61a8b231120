"""Everything that a token's loss is made of, put together as `config.grpo` says."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from perception_r1_jax.grpo.kl import token_kl
from perception_r1_jax.grpo.losses import Clip, Metrics, token_losses
from perception_r1_jax.grpo.ratios import rollout_mismatch, truncated_importance
from perception_r1_jax.records import TrainBatch


def token_objective(
    grpo: ConfigDict,
    rows: TrainBatch,
    logps: Float[Array, "B C"],
    entropy: Float[Array, "B C"],
    kl_weight: Float[Array, ""],
) -> tuple[Float[Array, "B C"], Metrics]:
    """The loss of each token: policy loss times the correction for the sampler, plus KL term, less entropy bonus.

    Args:
        grpo: `config.grpo`.
        rows: the batch without its prompts, [B, ...] in place of [N, G, ...].
        logps: of the rows' tokens under the policy.
        entropy: of the policy at these tokens.
        kl_weight: of the KL term (`kl.kl_coefficient`).

    Returns:
        The losses, and for each metric its value at each token; both mean nothing outside the mask.
    """
    old_logps = logps if rows.old_logps is None else rows.old_logps
    clip = Clip(grpo.clip_low, grpo.clip_high, grpo.dual_clip)
    losses, stats = token_losses(logps, old_logps, rows.advantages, rows.mask, clip, kind=grpo.loss)
    if rows.rollout_logps is not None:
        stats |= rollout_mismatch(old_logps, rows.rollout_logps, rows.mask)
    if grpo.importance_cap:
        weights, more = truncated_importance(old_logps, rows.rollout_logps, rows.mask, grpo.importance_cap)
        losses, stats = losses * weights, stats | more
    if rows.reference_logps is not None:
        stats["kl"] = token_kl(logps, rows.reference_logps, rows.mask, grpo.kl_estimator)
        if grpo.kl_in == "loss":
            losses += kl_weight * stats["kl"]
    if grpo.entropy_coefficient:
        losses -= grpo.entropy_coefficient * entropy
    return losses, stats | {"entropy": entropy, "tokens": jnp.ones_like(logps)}
