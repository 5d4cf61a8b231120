"""Whether a working directory's run is the one that a config continues, and what has changed since."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp
from rich.console import Console

from perception_r1_jax.errors import UserError
from perception_r1_jax.models import load_config
from perception_r1_jax.training.checkpoints import Checkpoints
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.run_record import write_record
from perception_r1_jax.training.state import TrainState, abstract_state, init_state
from perception_r1_jax.weights import load_params

FIXED = (
    "config.seed",
    "config.fidelity",
    "config.data.shuffle",
    "config.model.freeze_vision",
    "config.rollout.prompts_per_step",
    "config.rollout.samples_per_prompt",
    "config.grpo.updates_per_batch",
    "config.sft.row_tokens",
    "config.sft.row_windows",
    "config.sft.rows_per_step",
    "config.sft.waiting",
    "config.evaluation.checker",
    "config.evaluation.max_new_tokens",
    "config.evaluation.probe_max_new_tokens",
    "hashes.data",
    "hashes.evaluation",
)
"""What a run, of GRPO or supervised, cannot change on its way: keys, data position, optimizer state and the evaluation
before would mean something else."""


@dataclasses.dataclass
class Beginning:
    """Where a run begins or goes on.

    Attributes:
        optimizer: that made the state.
        checkpoints: of the run.
        state: of the latest checkpoint; where there is none, that of the starting model.
        step: steps it has done.
    """

    optimizer: optax.GradientTransformation
    checkpoints: Checkpoints
    state: TrainState
    step: int


def begin_or_continue(
    config: ConfigDict,
    workdir: Path,
    console: Console,
    record: Mapping[str, Any],
    model_dir: Path,
    mesh: Mesh,
    data: ocp.StatefulCheckpointable,
    *,
    updates: int,
    fidelity: str = "default",
) -> Beginning:
    """Makes the state that a run begins or goes on with, tells what has changed since, and writes `run.json`.

    Args:
        config: of the run; `model`, `optimizer` and `checkpoint` are read.
        workdir: of the run.
        console: where it is told.
        record: what `run.json` will hold.
        model_dir: of the starting model; its config is in `workdir`/model.
        mesh: where the state will lie.
        data: the data iterator; it is set to the checkpoint's position.
        updates: optimizer steps of the whole run.
        fidelity: of the optimizer.

    Raises:
        UserError: the checkpoint is of another run (`changes_since`), or cannot be restored.
    """
    model, freeze_vision, keep = load_config(workdir / "model"), config.model.freeze_vision, config.checkpoint
    optimizer = make_optimizer(config.optimizer, updates, fidelity=fidelity)
    abstract = abstract_state(model, optimizer, mesh, freeze_vision=freeze_vision)
    checkpoints = Checkpoints(workdir / "checkpoints", keep_last=keep.keep_last, keep_best=keep.keep_best)
    step = checkpoints.latest_step() or 0
    if step:
        changed = changes_since(workdir, record)
        state = checkpoints.restore(step, abstract, data)
        console.print(f"continues after step {step}, from {workdir}")
        for name, (then, now) in changed.items():
            console.print(f"  changed: {name} was {then!r} and is {now!r}")
    else:
        params = load_params(model_dir, model, mesh, jnp.float32)
        state = init_state(params, optimizer, abstract, freeze_vision=freeze_vision)
    write_record(workdir, record)
    return Beginning(optimizer, checkpoints, state, step)


def changes_since(workdir: Path, record: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compares the run that is about to continue with the `run.json` that it left.

    Args:
        workdir: holds `run.json`, or not, and then nothing has changed.
        record: what would be written there now.

    Returns:
        field -> (then, now) for config fields and hashes that differ.

    Raises:
        UserError: a field of `FIXED` differs; the message names each with both values.
    """
    path = workdir / "run.json"
    if not path.is_file():
        return {}
    then, now = (
        traverse_util.flatten_dict({name: whole[name] for name in ("config", "hashes")}, sep=".")
        for whole in (json.loads(path.read_text()), record)
    )
    changed = {name: (then.get(name), now.get(name)) for name in sorted(then | now) if then.get(name) != now.get(name)}
    refused = [f"{name} was {changed[name][0]!r} and is {changed[name][1]!r}" for name in FIXED if name in changed]
    if refused:
        raise UserError(f"{workdir} holds another run: {'; '.join(refused)}. Set them back, or choose another workdir.")
    return changed
