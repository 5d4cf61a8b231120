"""The KL term that holds the policy near its reference: estimators, where it counts, and how its weight moves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from perception_r1_jax.grpo.ratios import k3, log_ratio
from perception_r1_jax.records import AnyArray, TrainBatch

KL_ESTIMATORS = ("k1", "k2", "k3")
KL_PLACES = ("loss", "reward")
KL_SCHEDULES = ("fixed", "adaptive", "dynamic")

MAX_ERROR, GAIN = 0.2, 0.1
"""Of the adaptive schedule: an update's relative error is clipped to the one and multiplied by the other."""


def token_kl(
    logp: Float[AnyArray, "B C"], reference_logp: Float[AnyArray, "B C"], mask: Bool[AnyArray, "B C"], estimator: str
) -> Float[Array, "B C"]:
    """Estimates of KL(policy || reference) from the sampled tokens (http://joschu.net/blog/kl-approx.html).

    With d = logp - reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. As a loss k1 has no gradient in
    expectation; k2's is that of the true KL.

    Raises:
        ValueError: an estimator of another name.
    """
    ratios = log_ratio(logp, jax.lax.stop_gradient(reference_logp), mask)
    if estimator == "k1":
        return ratios
    if estimator == "k2":
        return 0.5 * jnp.square(ratios)
    if estimator == "k3":
        return k3(-ratios)
    raise ValueError(f"KL estimator {estimator!r} is unknown; choose one of {', '.join(KL_ESTIMATORS)}.")


def response_kl(batch: TrainBatch, estimator: str) -> Float[Array, "N G"]:
    """Sums of `token_kl` over each response, for a KL term in the reward.

    The policy is the one before the batch's first update: its recomputed log-probs where the batch has them, else the
    sampler's.
    """
    logps = batch.rollout_logps if batch.old_logps is None else batch.old_logps
    n, g, c = batch.mask.shape
    logps, reference, mask = (x.reshape(n * g, c) for x in (logps, batch.reference_logps, batch.mask))
    return jnp.sum(token_kl(logps, reference, mask, estimator), axis=1).reshape(n, g)


def has_kl(grpo: ConfigDict) -> bool:
    """Whether a run with this `config.grpo` has a KL term at any time, and so a reference policy."""
    return grpo.kl_coefficient > 0 or (grpo.kl_schedule == "dynamic" and grpo.kl_final > 0)


def kl_coefficient(
    grpo: ConfigDict, updates: int, update: Int[AnyArray, ""], scale: Float[AnyArray, ""]
) -> Float[Array, ""]:
    """The weight of the KL term in an update.

    - `fixed`: `kl_coefficient`.
    - `dynamic`: on a straight line from `kl_coefficient` at the first update to `kl_final` at the last; GRPO-D
      (arXiv 2503.16081) lets it grow.
    - `adaptive`: `kl_coefficient` times the scale that `adapted_scale` has come to.

    Args:
        grpo: `config.grpo`.
        updates: optimizer steps of the whole run.
        update: how many of them are done.
        scale: `TrainState.kl_scale`.
    """
    start = jnp.float32(grpo.kl_coefficient)
    if grpo.kl_schedule == "dynamic":
        done = jnp.minimum(update / max(updates - 1, 1), 1.0).astype(jnp.float32)
        return start + (grpo.kl_final - start) * done
    return start * scale if grpo.kl_schedule == "adaptive" else start


def adapted_scale(scale: Float[AnyArray, ""], kl: Float[AnyArray, ""], target: float) -> Float[Array, ""]:
    """The scale for the next update, a little larger where the KL is above its target (arXiv 1909.08593, section 2.2).

    A KL that is not finite leaves it as it is.
    """
    error = jnp.clip(kl / target - 1.0, -MAX_ERROR, MAX_ERROR)
    return jnp.where(jnp.isfinite(kl), scale * (1.0 + GAIN * error), scale)
