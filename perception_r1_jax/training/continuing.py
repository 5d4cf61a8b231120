"""Whether a working directory's run is the one that a config continues, and what has changed since."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp
from rich.console import Console

from perception_r1_jax.errors import UserError
from perception_r1_jax.grpo.kl import has_kl
from perception_r1_jax.host_memory import check_host_memory
from perception_r1_jax.json_files import read_json
from perception_r1_jax.models import ADAPTERS, LoraConfig, ModelConfig, Params, init_adapters, load_config
from perception_r1_jax.training.checkpoints import Checkpoints
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.run_record import RECORD, write_record
from perception_r1_jax.training.state import TrainState, abstract_state, init_state, state_options, state_shardings
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

FIXED_BY_ADAPTERS = (
    "config.lora.modules",
    "config.lora.rank",
    "config.lora.alpha",
    "config.model.dtype",
    "hashes.policy",
    "hashes.model",
)
"""What a run that trains adapters, or would from now on, cannot change either: them, and the model they belong to."""

FIXED_BY_REFERENCE = ("config.model.dtype", "hashes.policy")
"""What a run with a KL term, or that would have one from now on, cannot change either: its reference policy."""


@dataclasses.dataclass
class Beginning:
    """Where a run begins or goes on.

    Attributes:
        optimizer: that made the state.
        checkpoints: of the run.
        state: of the latest checkpoint; where there is none, that of the starting model.
        step: steps it has done.
        changed: fields of the config and hashes that have changed since; none of a run that begins.
    """

    optimizer: optax.GradientTransformation
    checkpoints: Checkpoints
    state: TrainState
    step: int
    changed: frozenset[str]


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

    That of a run which has all its steps is left as it is: it says what made them.

    Args:
        config: of the run; `seed`, `steps`, `model`, `lora`, `optimizer` and `checkpoint` are read.
        workdir: of the run.
        console: where it is told.
        record: what `run.json` will hold.
        model_dir: of the starting model; its config is in `workdir`/model.
        mesh: where the state will lie.
        data: the data iterator; it is set to the checkpoint's position.
        updates: optimizer steps of the whole run.
        fidelity: of the optimizer.

    Raises:
        UserError: another process trains in the workdir, the checkpoint is of another run (`changes_since`) or cannot
            be restored, or the devices lack the memory where the optimizer's state is to lie.
    """
    model, freeze_vision, keep = load_config(workdir / "model"), config.model.freeze_vision, config.checkpoint
    optimizer = make_optimizer(config.optimizer, updates, fidelity=fidelity)
    if config.optimizer.host_memory:
        check_host_memory("optimizer.host_memory", mesh)
    options = state_options(config)
    abstract = abstract_state(model, optimizer, mesh, **options)
    with contextlib.ExitStack() as opened:
        checkpoints = Checkpoints(workdir / "checkpoints", keep_last=keep.keep_last, keep_best=keep.keep_best)
        opened.enter_context(checkpoints)
        step, changed = checkpoints.latest_step() or 0, {}
        if step:
            changed = changes_since(workdir, record)
            state = _with_base(checkpoints.restore(step, abstract, data), model_dir, model, mesh, options["lora"])
            console.print(f"continues after step {step}, from {workdir}")
            if not (workdir / RECORD).is_file():
                console.print(f"  it has no {RECORD}: whether this is the run that was begun there is not known")
            for name, (then, now) in changed.items():
                console.print(f"  changed: {name} was {then!r} and is {now!r}")
        else:
            params = _starting_params(config.seed, model_dir, model, mesh, abstract, options["lora"])
            state = init_state(params, optimizer, abstract, freeze_vision=freeze_vision)
        if step < config.steps:
            write_record(workdir, record)
        opened.pop_all()  # they stay open for the run
    return Beginning(optimizer, checkpoints, state, step, frozenset(changed))


def _starting_params(
    seed: int, model_dir: Path, model: ModelConfig, mesh: Mesh, abstract: TrainState, lora: LoraConfig | None
) -> Params:
    params = load_params(model_dir, model, mesh, lora.dtype if lora else jnp.float32)
    if lora:
        init = functools.partial(init_adapters, abstract.params[ADAPTERS])
        key = jax.random.fold_in(jax.random.key(seed), 0)  # of the steps, which count from 1
        params[ADAPTERS] = jax.jit(init, out_shardings=state_shardings(abstract).params[ADAPTERS])(key)
    return params


def _with_base(
    state: TrainState, model_dir: Path, model: ModelConfig, mesh: Mesh, lora: LoraConfig | None
) -> TrainState:
    """The restored state, beside its adapters the model that they belong to, which checkpoints do not hold."""
    if not lora:
        return state
    return dataclasses.replace(state, params=load_params(model_dir, model, mesh, lora.dtype) | state.params)


def changes_since(workdir: Path, record: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compares the run that is about to continue with the `run.json` that it left.

    Args:
        workdir: holds `run.json`, or not, and then nothing is known to have changed.
        record: what would be written there now.

    Returns:
        field -> (then, now) for config fields and hashes that differ.

    Raises:
        UserError: a field of `FIXED` differs, or one of `FIXED_BY_ADAPTERS` or `FIXED_BY_REFERENCE`; the message names
            each with both values. Or the file is damaged.
    """
    before = read_json(workdir / RECORD)
    if not before:
        return {}
    then, now = (
        traverse_util.flatten_dict({name: whole[name] for name in ("config", "hashes")}, sep=".")
        for whole in (before, record)
    )
    changed = {name: (then.get(name), now.get(name)) for name in sorted(then | now) if then.get(name) != now.get(name)}
    adapters = any(flat.get("config.lora.modules") for flat in (then, now))
    reference = any(has_kl(ConfigDict(each["config"]["grpo"])) for each in (before, record) if "grpo" in each["config"])
    fixed = dict.fromkeys(FIXED + FIXED_BY_ADAPTERS * adapters + FIXED_BY_REFERENCE * reference)
    refused = [f"{name} was {changed[name][0]!r} and is {changed[name][1]!r}" for name in fixed if name in changed]
    if refused:
        raise UserError(f"{workdir} holds another run: {'; '.join(refused)}. Set them back, or choose another workdir.")
    return changed
