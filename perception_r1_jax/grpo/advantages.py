"""Advantages: how much better a response is than others, by GRPO, Dr. GRPO, RLOO or REINFORCE++ (docs/losses.md)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from perception_r1_jax.records import GroupAdvantages

EPSILON = 1e-6

DIVISORS = {
    "grpo": lambda std, count: std + EPSILON,
    "dr_grpo": lambda std, count: 1.0,
    "rloo": lambda std, count: (count - 1) / count,
}
"""What a centred reward is divided by, from std (ddof=1) and count of the group's valid members."""

ADVANTAGES = (*DIVISORS, "reinforce_plus_plus")


def group_advantages(
    rewards: Float[np.ndarray, "N G"],
    valid: Bool[np.ndarray, "N G"] | None = None,
    *,
    kind: str = "grpo",
    fidelity: str = "default",
) -> Float[np.ndarray, "N G"]:
    """The advantages of each group's valid members; those that are not valid get 0 and count in no statistics.

    - `grpo`: (r - mean) / (std + 1e-6) within the group, std with ddof=1 (arXiv 2402.03300, section 4.1.2).
    - `dr_grpo`: r - mean (arXiv 2503.20783, section 3.2).
    - `rloo`: r - mean of the group's other members (arXiv 2402.14740, equation 8).
    - `reinforce_plus_plus`: as `grpo`, with the whole batch for a group (arXiv 2501.03262).

    A group whose rewards are all equal, or with fewer than two valid members, gets exact zeros. Under
    `fidelity="paper"` equal rewards are not looked for: as in the authors' code their float32 mean may miss them by a
    rounding, which the division makes up to 0.03.

    Raises:
        ValueError: a valid member's reward is not finite, or a kind of another name.
    """
    if kind not in ADVANTAGES:
        raise ValueError(f"advantages {kind!r} are unknown; choose one of {', '.join(ADVANTAGES)}.")
    rewards, valid = _checked(rewards, valid)
    if kind == "reinforce_plus_plus":
        return _advantages(rewards.reshape(1, -1), valid.reshape(1, -1), "grpo", fidelity).reshape(rewards.shape)
    return _advantages(rewards, valid, kind, fidelity)


def no_signal(rewards: Float[np.ndarray, "N G"], valid: Bool[np.ndarray, "N G"]) -> Bool[np.ndarray, " N"]:
    """Groups that teach nothing: the rewards of their valid members are all equal, or there are fewer than two."""
    highest = np.where(valid, rewards, -np.inf).max(axis=1)
    lowest = np.where(valid, rewards, np.inf).min(axis=1)
    return (valid.sum(axis=1) < 2) | (highest == lowest)


def advantages_of_groups(
    rewards: Float[np.ndarray, "N G"],
    valid: Bool[np.ndarray, "N G"],
    *,
    kind: str = "grpo",
    fidelity: str = "default",
) -> GroupAdvantages:
    """Advantages of a batch, and which of its groups are without signal."""
    return GroupAdvantages(group_advantages(rewards, valid, kind=kind, fidelity=fidelity), no_signal(rewards, valid))


def _advantages(rewards, valid, kind, fidelity):
    dtype = np.float32 if fidelity == "paper" else np.float64
    count = np.maximum(valid.sum(axis=1, keepdims=True), 2)  # with fewer there is nothing to compare with
    kept = np.where(valid, rewards, 0).astype(dtype)
    centred = np.where(valid, kept - (_sum(kept) / count).astype(dtype), 0)
    std = np.sqrt(_sum(centred**2) / (count - 1))
    advantages = (centred / DIVISORS[kind](std, count)).astype(np.float32)
    silent = valid.sum(axis=1) < 2 if fidelity == "paper" else no_signal(rewards, valid)
    advantages[silent] = 0
    return advantages


def _checked(rewards, valid):
    rewards = np.asarray(rewards)
    valid = np.ones(rewards.shape, bool) if valid is None else np.asarray(valid, bool)
    broken = np.argwhere(valid & ~np.isfinite(rewards))
    if len(broken):
        group, member = broken[0]
        raise ValueError(
            f"reward [{group}, {member}] is {rewards[group, member]}. Give it a number, or leave the response out by "
            "`valid`."
        )
    return rewards, valid


def _sum(values):
    """Sums in order: NumPy's pairwise sum would hide the rounding that `fidelity="paper"` keeps."""
    return np.cumsum(values, axis=1)[:, -1:]
