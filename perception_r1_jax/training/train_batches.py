"""From a scored rollout to the batches of its updates, and the updates themselves."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Bool, Float

from perception_r1_jax.config import optimizer_steps
from perception_r1_jax.grpo.advantages import advantages_of_groups
from perception_r1_jax.grpo.kl import has_kl, kl_coefficient, response_kl
from perception_r1_jax.inference.rollout import bucketed_batch
from perception_r1_jax.records import FINISH_LENGTH, GroupAdvantages, Rollout, Scores, TrainBatch
from perception_r1_jax.training.groups import Groups
from perception_r1_jax.training.setup import Run


def make_train_batches(run: Run, groups: Groups) -> tuple[list[TrainBatch], GroupAdvantages]:
    """A batch for each optimizer step (numpy), all log-probs before the first of them, and the advantages."""
    grpo, updates, rollout, scores = run.config.grpo, run.config.grpo.updates_per_batch, groups.rollout, groups.scores
    advantages, counted = _advantages(run, scores, scores.total), _counted(run, rollout, scores)
    kl_in_reward = has_kl(grpo) and grpo.kl_in == "reward"
    batch = TrainBatch(
        prompts=groups.prompt_batch or bucketed_batch(groups.prompts, run.processor, run.config.rollout),
        responses=rollout.tokens,
        mask=_scored(rollout, scores) if kl_in_reward else counted,
        advantages=advantages.advantages,
        rollout_logps=rollout.logps,
    )
    batch = run.add_log_probs(run.state.params, batch if kl_in_reward else run.train_step.looked_at(batch))
    if kl_in_reward:
        penalised = _advantages(run, scores, scores.total - _kl_penalty(run, batch)).advantages
        advantages = dataclasses.replace(advantages, advantages=penalised)
        batch = dataclasses.replace(batch, advantages=penalised)
    batch = dataclasses.replace(batch, mask=counted)
    shares = (slice(update, None, updates) for update in range(updates))  # dynamic sampling puts signal first
    return [jax.tree.map(lambda x, rows=rows: x[rows], batch) for rows in shares], advantages


def take_updates(run: Run, batches: list[TrainBatch]) -> dict[str, float]:
    """One optimizer step for each batch; the means of their metrics, `tokens` of all and `skipped` after the last."""
    metrics = []
    for batch in batches:
        run.state, updated = run.train_step(run.state, batch)
        metrics.append(updated)
    metrics = jax.device_get(metrics)
    merged = {name: _mean([updated[name] for updated in metrics]) for name in metrics[0]}
    tokens = float(sum(updated["tokens"] for updated in metrics))
    return {**merged, "tokens": tokens, "skipped": float(metrics[-1]["skipped"])}


def _mean(values: list[float]) -> float:
    """Of those updates that have a value; an update without tokens has no means over them."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _advantages(run: Run, scores: Scores, rewards: np.ndarray) -> GroupAdvantages:
    return advantages_of_groups(rewards, scores.valid, kind=run.config.grpo.advantages, fidelity=run.config.fidelity)


def _scored(rollout: Rollout, scores: Scores) -> Bool[np.ndarray, "N G C"]:
    """The tokens of the responses whose rewards count in their groups."""
    return rollout.mask & scores.valid[:, :, None]


def _counted(run: Run, rollout: Rollout, scores: Scores) -> Bool[np.ndarray, "N G C"]:
    """The tokens of the responses that take part in the loss."""
    scored = _scored(rollout, scores)
    if not run.config.grpo.mask_truncated:
        return scored
    return scored & (np.array(rollout.finish_reasons) != FINISH_LENGTH)[:, :, None]


def _kl_penalty(run: Run, batch: TrainBatch) -> Float[np.ndarray, "N G"]:
    """What the KL takes off each response's reward."""
    grpo, state = run.config.grpo, run.state
    coefficient = kl_coefficient(grpo, optimizer_steps(run.config), state.step, state.kl_scale)
    return np.float32(coefficient) * np.asarray(response_kl(batch, grpo.kl_estimator))
