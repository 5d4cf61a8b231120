"""How much of what the devices can do an update uses (model FLOPs utilisation, arXiv 2204.02311, appendix B)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perception_r1_jax.grpo.kl import has_kl
from perception_r1_jax.grpo.work import Work, gradient_passes, needed_work, row_work
from perception_r1_jax.records import TrainBatch
from perception_r1_jax.speeds import SPEEDS
from perception_r1_jax.training.setup import Run


def utilisation(run: Run, batches: Sequence[TrainBatch], seconds: float) -> dict[str, float]:
    """Metrics of a step's updates, which took so many seconds, log-probs of old and reference policy included.

    `train/tflops` is 1e12 operations a second of all devices together that the batch needs: each prompt and each
    response once, without padding and without what is computed a second time in the backward pass. `_padded` counts
    what goes through the model, `_text` leaves the vision tower out. `train/mfu...` are the shares of the devices'
    bfloat16 speed, where that is known.
    """
    model = run.engine.config
    micro_batches = [one for batch in batches for one in run.train_step.micro_batches(batch)]
    needed = Work(*np.sum([needed_work(model, batch) for batch in batches], axis=0))
    metrics = {}
    for suffix, work in {"": needed, "_padded": row_work(model, micro_batches)}.items():
        text, vision = _passes(run, work)
        metrics[f"tflops{suffix}"] = (text + vision) / seconds / 1e12
        metrics[f"tflops_text{suffix}"] = text / seconds / 1e12
    speed = SPEEDS.get(run.mesh.devices.flat[0].device_kind)
    if speed:
        peak = speed.flops * run.mesh.devices.size / 1e12
        metrics |= {name.replace("tflops", "mfu"): value / peak for name, value in metrics.items()}
    return {f"train/{name}": value for name, value in metrics.items()}


def _passes(run: Run, forward: Work) -> Work:
    """Forward and backward passes, and forward passes for other log-probs."""
    grpo = run.config.grpo
    more = int(grpo.updates_per_batch > 1) + int(has_kl(grpo))
    passes = gradient_passes(run.config)
    return Work((passes.text + more) * forward.text, (passes.vision + more) * forward.vision)
