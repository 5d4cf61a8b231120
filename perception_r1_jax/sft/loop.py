"""The loop of supervised training: take a batch, step, validate, log, save."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from perception_r1_jax.json_files import write_json
from perception_r1_jax.records import PackedBatch
from perception_r1_jax.sft.setup import SftRun
from perception_r1_jax.sharding import put_batch
from perception_r1_jax.training.metrics import MetricsWriter, finite, format_line, read_lines
from perception_r1_jax.training.progress import progress_bar
from perception_r1_jax.training.run_record import peak_bytes_of, peak_rss_bytes
from perception_r1_jax.training.stopping import StopRequest
from perception_r1_jax.training.timing import Clock

LINE = {
    "loss": "train/loss",
    "validation loss": "validation/loss",
    "validation accuracy": "validation/token_accuracy",
    "grad norm": "train/grad_norm",
    "conversations": "data/conversations",
    "filled": "data/filled",
    "seconds": "time/step",
}
"""The metrics of a printed line; metrics.jsonl has all."""


def train(run: SftRun) -> dict[str, Any] | None:
    """Runs the steps that are left.

    Returns:
        The content of `result.json`; None where a SIGINT or SIGTERM stopped the run, which is then saved.

    Raises:
        DataError: no conversation of the data fits a row.
    """
    config, console, steps = run.config, run.console, run.config.steps
    if run.step >= steps:
        console.print(f"{run.workdir} has its {run.step} steps already: set config.steps higher to go on.")
        run.checkpoints.close()
        return _write_result(run)
    with (
        StopRequest(console) as stop,
        run.checkpoints,  # the last one, too, is waited for at a signal
        MetricsWriter(run.workdir, first_step=run.step + 1) as writer,
        progress_bar(run.step, steps, console, {"loss": "train/loss"}) as advance,
    ):
        for step in range(run.step + 1, steps + 1):
            clock = Clock()
            with clock("data"):
                batch = next(run.batches)
            with clock("train"):
                run.state, updated = run.train_step(run.state, put_batch(run.mesh, batch))
                updated = {f"train/{name}": float(value) for name, value in jax.device_get(updated).items()}
            validated = {}
            if run.validation and (step % config.sft.validate_every == 0 or step == steps):
                with clock("validation"):
                    validated = validate(run)
            metrics = {**updated, **validated, **batch_metrics(run, batch), **clock.metrics()}
            writer.write(step, metrics)
            advance(metrics)
            if step % config.sft.log_every == 0 or step == steps or validated:
                console.print(
                    format_line(step, steps, {k: metrics[v] for k, v in LINE.items() if v in metrics}, list(LINE))
                )
            stopping = stop.agreed()
            if step % config.checkpoint.every == 0 or step == steps or stopping:
                run.checkpoints.save(step, run.state, run.batches, metric=-validated.get("validation/loss", math.nan))
            if stopping:
                run.checkpoints.wait()
                console.print(f"stopped after step {step}, which is saved; the same command goes on from there.")
                return None
    console.print(
        "As a Hugging Face folder:\n"
        f"  python -m tools.convert_weights.jax_to_hf --checkpoint {run.workdir} --out DIR --dtype bfloat16"
    )
    return _write_result(run)


def validate(run: SftRun) -> dict[str, float]:
    """`validation/loss` and `validation/token_accuracy`, means over the response tokens of the whole set."""
    sums = [jax.device_get(run.scores(run.state.params, put_batch(run.mesh, batch))) for batch in run.validation()]
    totals = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
    tokens = totals.pop("tokens")
    return {f"validation/{name}": total / tokens for name, total in totals.items()}


def batch_metrics(run: SftRun, batch: PackedBatch) -> dict[str, float]:
    """What a batch held, what was dropped so far, memory of this process, and how many programs were compiled."""
    return {
        "data/conversations": float((batch.segment_ids.max(axis=1) + 1).sum()),
        "data/response_tokens": float(batch.loss_mask.sum()),
        "data/filled": float(np.mean(batch.segment_ids >= 0)),
        "data/dropped": len(run.batches.dropped),
        "memory/peak_rss_gib": peak_rss_bytes() / 2**30,
        "compilations/train": run.train_step._cache_size(),
    }


def _write_result(run: SftRun) -> dict[str, Any]:
    """`result.json`: the last losses, and seconds and memory of all steps, those before a stop included."""
    lines = read_lines(run.workdir / "metrics.jsonl")
    names = ("train/loss", "validation/loss", "validation/token_accuracy")
    result = {name: finite(lines[-1].get(name)) for name in names}
    seconds = run.setup_seconds + sum(line["time/step"] for line in lines)
    result |= {"seconds": round(seconds, 1), "peak_rss_bytes": peak_bytes_of(lines)}
    write_json(run.workdir / "result.json", result)
    return result
