"""From a scored rollout to the batches of its updates, and the updates themselves."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Float

from perception_r1_jax.config import optimizer_steps
from perception_r1_jax.grpo.advantages import advantages_of_groups
from perception_r1_jax.grpo.flat_groups import flat_last
from perception_r1_jax.grpo.kl import has_kl, kl_coefficient, response_kl
from perception_r1_jax.inference.rollout import bucketed_batch
from perception_r1_jax.records import FINISH_LENGTH, GroupAdvantages, Rollout, Scores, TrainBatch
from perception_r1_jax.sharding import put_batch, replicated
from perception_r1_jax.training.groups import Groups
from perception_r1_jax.training.setup import Run


def make_train_batches(run: Run, groups: Groups) -> tuple[list[TrainBatch], GroupAdvantages]:
    """A batch on the mesh for each optimizer step, all log-probs before the first of them, and the advantages.

    With `grpo.drop_flat_groups` groups change places within the batches, so that flat ones come together.
    """
    grpo, updates, rollout, scores = run.config.grpo, run.config.grpo.updates_per_batch, groups.rollout, groups.scores
    advantages = _advantages(run, scores, scores.total)
    order = np.arange(len(scores.total))
    if grpo.drop_flat_groups:
        order = flat_last(~advantages.advantages.any(axis=1), updates, grpo.micro_batch_prompts)
    batch = TrainBatch(
        prompts=groups.prompt_batch or bucketed_batch(groups.prompts, run.processor, run.config.rollout),
        responses=rollout.tokens,
        mask=_counted(rollout, scores, mask_truncated=grpo.mask_truncated),
        advantages=advantages.advantages,
        rollout_logps=rollout.logps,
    )
    shares = np.split(order, updates)
    batches = [run.add_log_probs(run.state.params, put_batch(run.mesh, _groups(batch, rows))) for rows in shares]
    if has_kl(grpo) and grpo.kl_in == "reward":
        penalty = np.empty_like(scores.total)
        penalty[order] = _kl_penalty(run, batches)
        penalised = _advantages(run, scores, scores.total - penalty).advantages
        advantages = dataclasses.replace(advantages, advantages=penalised)
        batches = [
            dataclasses.replace(batch, advantages=put_batch(run.mesh, penalised[rows]))
            for batch, rows in zip(batches, shares)
        ]
    return batches, advantages


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


def _counted(rollout: Rollout, scores: Scores, *, mask_truncated: bool) -> np.ndarray:
    """The tokens of the responses that take part in the loss, bool [N, G, C]."""
    counted = scores.valid
    if mask_truncated:
        counted = counted & (np.array(rollout.finish_reasons) != FINISH_LENGTH)
    return rollout.mask & counted[:, :, None]


def _groups(batch: TrainBatch, rows: np.ndarray) -> TrainBatch:
    """Those of these rows; neighbours, of which most batches consist, without a copy of their pictures."""
    neighbours = np.all(np.diff(rows) == 1)
    index = slice(rows[0], rows[-1] + 1) if neighbours else rows
    return jax.tree.map(lambda x: x[index], batch)


def _kl_penalty(run: Run, batches: list[TrainBatch]) -> Float[np.ndarray, "N G"]:
    """What the KL takes off each response's reward, in the order of the batches."""
    grpo, state = run.config.grpo, run.state
    sums = jax.jit(response_kl, static_argnums=1, out_shardings=replicated(run.mesh))
    coefficient = kl_coefficient(grpo, optimizer_steps(run.config), state.step, state.kl_scale)
    kl = jax.device_get([sums(batch, grpo.kl_estimator) for batch in batches])
    return np.float32(coefficient) * np.concatenate(kl)
