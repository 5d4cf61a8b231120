"""What becomes of a response one of whose reward terms has failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perception_r1_jax.errors import UserError
from perception_r1_jax.rewards.tally import name_first

POLICIES = ("drop_sample", "drop_term_for_group", "zero", "abort")


class RewardFailed(UserError):
    """A reward term failed under the policy "abort"."""


def resolve_failures(
    terms: Mapping[str, np.ndarray],
    failed: Mapping[str, np.ndarray],
    policies: Mapping[str, str],
    problem_ids: Sequence[str],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Turns terms with holes into terms that can be summed, and says which responses still count.

    Policies: "drop_sample" (the response takes no part in the update), "drop_term_for_group" (the term is 0
    for all of the response's group, so that nobody gains from another's failure), "zero" (the term is 0 for
    this response alone) and "abort". A NaN that is no failure, such as the visual term of a problem without
    annotations, is 0 in the sum.

    Args:
        terms: name -> float [N, G], NaN where there is no value.
        failed: name -> bool [N, G]; terms not named here cannot fail.
        policies: name -> policy, for each name in `failed`.
        problem_ids: [N], for messages.

    Returns:
        The terms without NaN, float [N, G], and valid, bool [N, G].

    Raises:
        RewardFailed: a failure under "abort", naming the problems.
        ValueError: an unknown policy.
    """
    resolved = {name: np.nan_to_num(values, nan=0.0) for name, values in terms.items()}
    valid = np.ones(next(iter(terms.values())).shape, bool)
    for name, holes in failed.items():
        match policies[name]:
            case "drop_sample":
                valid &= ~holes
            case "drop_term_for_group":
                resolved[name] = np.where(holes.any(axis=1, keepdims=True), 0.0, resolved[name])
            case "zero":
                resolved[name] = np.where(holes, 0.0, resolved[name])
            case "abort":
                _refuse(name, holes, problem_ids)
            case unknown:
                raise ValueError(f"failure policy {unknown!r} for the {name} reward; use one of {', '.join(POLICIES)}")
    return resolved, valid


def _refuse(name: str, holes: np.ndarray, problem_ids: Sequence[str]) -> None:
    if holes.any():
        names = name_first(problem_ids[row] for row in np.flatnonzero(holes.any(axis=1)))
        raise RewardFailed(
            f"the {name} reward of {holes.sum()} of {holes.size} responses failed, of the problems {names}; "
            "the policy is to abort. Set config.judge.on_failure to another one to go on without them."
        )
