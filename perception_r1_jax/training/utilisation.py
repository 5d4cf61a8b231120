"""How much of what the devices can do an update uses (model FLOPs utilisation, arXiv 2204.02311, appendix B)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perception_r1_jax.grpo.kl import has_kl
from perception_r1_jax.grpo.micro_batches import MicroBatch, cut_batch
from perception_r1_jax.grpo.work import Work, gradient_passes, needed_work, row_work
from perception_r1_jax.records import TrainBatch
from perception_r1_jax.speeds import SPEEDS
from perception_r1_jax.training.setup import Run


def utilisation(run: Run, batches: Sequence[TrainBatch], seconds: float) -> dict[str, float]:
    """Metrics of a step's updates, which took so many seconds, log-probs of old and reference policy included.

    `train/tflops` is 1e12 operations a second of all devices together that the batch needs: each prompt and each
    response once, without padding and without what is computed a second time in the backward pass; what
    `grpo.drop_flat_groups` leaves out is not counted, nor are truncated responses outside the loss whose KL a reward
    takes. `_padded` counts what goes through the model, `_text` leaves the vision tower out. `train/mfu...` are the
    shares of the devices' bfloat16 speed, where that is known.
    """
    looked_at = [run.train_step.looked_at(batch) for batch in batches]
    trained = [(batch, cut_batch(batch.prompts, batch.mask, run.config)) for batch in looked_at]
    more, passed = _log_prob_passes(run), trained
    if run.config.grpo.kl_in == "reward":  # of all responses, so that their advantages are known
        passed = [(batch, cut_batch(batch.prompts, batch.mask, run.config)) for batch in batches]
    gradient, others = _work(run, trained, gradient_passes(run.config)), _work(run, passed, more)
    metrics = {}
    for suffix in ("", "_padded"):
        text, vision = np.add(gradient[suffix], others[suffix])
        metrics[f"tflops{suffix}"] = (text + vision) / seconds / 1e12
        metrics[f"tflops_text{suffix}"] = text / seconds / 1e12
    speed = SPEEDS.get(run.mesh.devices.flat[0].device_kind)
    if speed:
        peak = speed.flops * run.mesh.devices.size / 1e12
        metrics |= {name.replace("tflops", "mfu"): value / peak for name, value in metrics.items()}
    return {f"train/{name}": value for name, value in metrics.items()}


def _work(run: Run, parts: Sequence[tuple[TrainBatch, list[MicroBatch]]], passes: Work) -> dict[str, np.ndarray]:
    """Operations [2], of text and vision, that so many passes over the batches' micro-batches need, and make."""
    model = run.engine.config
    needed = np.sum([needed_work(model, batch) for batch, _ in parts], axis=0)
    padded = np.sum([row_work(model, micro_batches) for _, micro_batches in parts], axis=0)
    return {"": np.multiply(needed, passes), "_padded": np.multiply(padded, passes)}


def _log_prob_passes(run: Run) -> Work:
    """Forward passes for the log-probs of old and reference policy."""
    grpo = run.config.grpo
    passes = int(grpo.updates_per_batch > 1) + int(has_kl(grpo))
    return Work(passes, passes)
