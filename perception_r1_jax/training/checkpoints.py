"""Checkpoints of a run: one folder per step, each complete or absent.

    <directory>/<step>/params      float32 parameters, adapters merged: alone enough for an export
                      /adapters    those of a run that trains them, apart
                      /optimizer   the optimizer's state
                      /counters    step, skipped, kl_scale
                      /data        the data iterator's position
    <directory>/../.lock           one process of a run has it while the checkpoints are open

The arrays are written while training goes on; a checkpoint appears under its name only when all of it is on
disk, and older ones go only after that.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from perception_r1_jax.errors import UserError
from perception_r1_jax.models import ADAPTERS, Params, base_params, cast_params, merge_adapters
from perception_r1_jax.training.lock import lock_folder
from perception_r1_jax.training.state import TrainState

logger = logging.getLogger(__name__)

UNFINISHED = ".orbax-checkpoint-tmp"
"""How the names of checkpoints end until they are complete."""

REASON = 300
"""Characters of the storage layer's reason that a message gives."""


class Checkpoints:
    """The checkpoints of one run. Use as a context manager, or call `close`: it waits for the last save.

    A save that fails in the background, as on a full disk, costs its checkpoint alone: it is told when the next one
    begins. Of the last one it is an error.

    No other process can open them meanwhile. Those of one run that work on a mesh together can: the first takes the
    lock for all.

    Args:
        directory: their folder; made where it does not exist.
        keep_last: how many of the newest stay.
        keep_best: how many of the best by the metric given to `save` stay as well.

    Raises:
        UserError: another process has opened them.
    """

    def __init__(self, directory: str | Path, *, keep_last: int, keep_best: int = 0):
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["metric"], n=keep_best, keep_checkpoints_without_metrics=False
        )
        self._directory = Path(directory).absolute()
        self._kept = policies.AnyPreservationPolicy([policies.LatestN(keep_last), best])
        self._held = contextlib.ExitStack()
        if jax.process_index() == 0:
            self._held.enter_context(lock_folder(self._directory.parent, "workdir"))
        self._checkpointer = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        """Reads which steps are there, and removes what a save that was not completed has left.

        The storage layer would remove it in the background, where two that are opened one after the other get in each
        other's way and the next save raises that.
        """
        self._remove_unfinished()
        return ocp.training.Checkpointer(self._directory, preservation_policy=self._kept)

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for unfinished in self._directory.glob(f"*{UNFINISHED}"):
                # A writer of a save that failed may not have noticed and still add to it: what it adds goes at the end.
                shutil.rmtree(unfinished, ignore_errors=True)

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, or one under way, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def latest_step(self) -> int | None:
        """The newest of `steps`."""
        return max(self.steps, default=None)

    def save(self, step: int, state: TrainState, data: ocp.StatefulCheckpointable, *, metric: float = math.nan) -> None:
        """Starts writing the state; returns once its arrays are copied, so that they may be donated.

        A step that already has a checkpoint is left as it is. It waits for the save before; if that one failed, this
        is told and the state saved nevertheless.

        Args:
            step: how many steps the run has done.
            state: of the run after that step.
            data: the data iterator, at the position where a resumed run goes on.
            metric: the higher, the better; a checkpoint without a number is never among the best.
        """
        if failure := self._failure():
            logger.warning("%s The run goes on and saves step %d.", failure, step)
        if step in self.steps:
            return
        metrics = {"metric": float(metric)} if math.isfinite(metric) else None
        checkpointables = {**_trained(state), "params": _exported(state.params), "data": data}
        self._checkpointer.save_checkpointables_async(step, checkpointables, force=True, metrics=metrics)

    def restore(self, step: int, abstract: TrainState, data: ocp.StatefulCheckpointable) -> TrainState:
        """The state after `step`, laid out as `abstract` says, on whatever mesh; `data` is set to its position.

        With adapters it has their parameters alone: those that they were merged with are the starting model's.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            UserError: it is damaged, or of another model, another optimizer, or another set of trained parts.
        """
        self.wait()
        if step not in self.steps:
            raise FileNotFoundError(f"{self._directory} has no checkpoint of step {step}; it has steps {self.steps}.")
        try:
            loaded = self._checkpointer.load_checkpointables(step, {**_trained(abstract), "data": data})
        except KeyError as error:  # what orbax raises whatever went wrong; the cause is below it
            raise UserError(
                f"the checkpoint {self._directory / str(step)} cannot be read into this run's state: "
                f"{textwrap.shorten(str(error.__cause__ or error), REASON)}\nResume with the model and optimizer "
                f"settings it was saved with, or choose an empty workdir. A damaged checkpoint can be removed: "
                "the run then goes on from the one before."
            ) from error
        params = {ADAPTERS: loaded[ADAPTERS]} if ADAPTERS in loaded else loaded["params"]
        return TrainState(params, loaded["optimizer"], **loaded["counters"])

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
            UserError: it failed.
        """
        if failure := self._failure():
            raise UserError(f"{failure} Free space; the same command goes on from the checkpoint before.")

    def close(self) -> None:
        """Waits, then lets go of the folder. Raises as `wait`."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            self._remove_unfinished()
            self._held.close()

    def _failure(self) -> str:
        """Waits for the last save and says why it failed; "" where it did not, or where that was said before."""
        try:
            self._checkpointer.wait()
        except Exception as error:  # whatever the storage layer raises
            self._checkpointer.close()
            self._checkpointer = self._open()
            return f"a checkpoint could not be written to {self._directory}: {textwrap.shorten(str(error), REASON)}."
        return ""

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self.close()
        except UserError as error:
            if kind is None:
                raise
            logger.warning("%s", error)  # what has ended the run is told as its end


def has_checkpoint(directory: Path) -> bool:
    """Whether a complete one is in the folder; it need not exist."""
    return any(path.name.isdigit() for path in directory.glob("*"))  # one that is not complete has a longer name


def _trained(state: TrainState) -> dict[str, Any]:
    """What updates change."""
    counters = {"step": state.step, "skipped": state.skipped, "kl_scale": state.kl_scale}
    name = ADAPTERS if ADAPTERS in state.params else "params"
    return {name: state.params.get(ADAPTERS, state.params), "optimizer": state.opt_state, "counters": counters}


def _exported(params: Params) -> Params:
    """A model's own parameters, float32."""
    if ADAPTERS not in params:
        return params
    shardings = jax.tree.map(lambda x: x.sharding, base_params(params))
    return jax.jit(lambda x: cast_params(merge_adapters(x), jnp.float32), out_shardings=shardings)(params)
