"""Rollouts on disk: saved by one run, and taken by another instead of drawing its own, for debugging.

A file is an `.npz` of plain arrays, `tokens`, `mask` and `logps`, beside three JSON texts: `about` (step, seed, problem
ids), `texts` and `finish_reasons`. It is edited by `read_rollout`, `dataclasses.replace` and `write_rollout`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from perception_r1_jax.errors import UserError
from perception_r1_jax.records import Rollout

_ARRAYS, _LISTS = ("tokens", "mask", "logps"), ("texts", "finish_reasons")
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class SavedRollout:
    """A rollout, and where it comes from.

    Attributes:
        step: for which it was drawn.
        seed: of the run.
        problem_ids: N of them, in the order of the batch.
        rollout: the responses.
    """

    step: int
    seed: int
    problem_ids: Sequence[str]
    rollout: Rollout


def rollout_file(folder: str | Path, step: int) -> Path:
    """Where a run saves the rollout of a step."""
    return Path(folder) / f"step-{step:06d}.npz"


def write_rollout(path: Path, saved: SavedRollout) -> None:
    """Writes the file whole, in the place of an older one; its folder is made."""
    about = {"step": saved.step, "seed": saved.seed, "problem_ids": list(saved.problem_ids)}
    texts = {"about": about, **{name: getattr(saved.rollout, name) for name in _LISTS}}
    write_archive(path, {name: getattr(saved.rollout, name) for name in _ARRAYS}, texts)


def write_archive(path: Path, arrays: Mapping[str, np.ndarray], texts: Mapping[str, Any]) -> None:
    """Writes an `.npz` of arrays and of texts as JSON: whole, in the place of an older one; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays, **{name: np.array(json.dumps(content)) for name, content in texts.items()})
    os.replace(temporary, path)


def read_rollout(path: Path) -> SavedRollout:
    """What `write_rollout` wrote.

    Raises:
        UserError: the file is not there, or holds no rollout.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _ARRAYS}
            lists = {name: _text(archive, name) for name in _LISTS}
            about = _text(archive, "about")
            return SavedRollout(about["step"], about["seed"], about["problem_ids"], Rollout(**arrays, **lists))
    except _UNREADABLE as error:
        raise UserError(
            f"{path} holds no rollout ({type(error).__name__}: {error}). Give a file that config.rollout.save has made."
        ) from error


def rollouts_to_replay(source: str, steps: range) -> dict[int, Path]:
    """Which of the steps take which file.

    Args:
        source: `config.rollout.replay`: a file, a folder of `rollout_file`, or "" for none.
        steps: that a run will take.

    Raises:
        UserError: a file that holds no rollout, or nothing for any of the steps.
    """
    if not source or not steps:
        return {}
    path = Path(source)
    if path.is_dir():
        files = {step: rollout_file(path, step) for step in steps if rollout_file(path, step).is_file()}
        missing = f"has no {rollout_file('', steps[0])} or later one"
    else:
        saved = read_rollout(path)
        files = {saved.step: path} if saved.step in steps else {}
        missing = f"was saved at step {saved.step}"
    if not files:
        raise UserError(
            f"config.rollout.replay = {source!r} {missing}, and this run goes from step {steps[0]} to {steps[-1]}. "
            "Replay it in a run that takes its step, or set the field to ''."
        )
    return files


def replay(path: Path, step: int, problem_ids: Sequence[str], config: ConfigDict, vocabulary: int) -> Rollout:
    """The rollout in a file, if it can stand for the one that this step would draw.

    Args:
        path: of the file.
        step: that takes it.
        problem_ids: of the step's batch, in its order.
        config: `config.rollout`.
        vocabulary: V, the policy's.

    Raises:
        UserError: no rollout, or of another step, of other problems, of other sizes, or of another vocabulary.
    """
    saved = read_rollout(path)
    origin = f"{path}, saved at step {saved.step} of a run with seed {saved.seed},"
    if saved.step != step:
        raise UserError(f"{origin} cannot be replayed at step {step}. Name it after its own step.")
    rows = zip(saved.problem_ids, problem_ids)
    other = next(((row, held, wanted) for row, (held, wanted) in enumerate(rows) if held != wanted), None)
    if other is not None:
        row, held, wanted = other
        raise UserError(
            f"{origin} has the problem {held!r} in place {row} where this run's batch has {wanted!r}. "
            "Replay it with the data, the seed and the batch size of the run that saved it."
        )
    _check_sizes(origin, saved, len(problem_ids), config)
    tokens = saved.rollout.tokens
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise UserError(
            f"{origin} has token ids from {tokens.min()} to {tokens.max()}; this policy's go from 0 to "
            f"{vocabulary - 1}. Replay it with the model of the run that saved it."
        )
    return saved.rollout


def _check_sizes(origin: str, saved: SavedRollout, prompts: int, config: ConfigDict) -> None:
    rollout, samples, longest = saved.rollout, config.samples_per_prompt, config.response_buckets[-1]
    shapes = {name: getattr(rollout, name).shape for name in _ARRAYS}
    alike = len(set(shapes.values())) == 1 and rollout.tokens.ndim == 3 and rollout.tokens.shape[2] <= longest
    lists = [[len(row) for row in getattr(rollout, name)] for name in _LISTS]
    if not alike or rollout.tokens.shape[:2] != (prompts, samples) or lists != [[samples] * prompts] * len(lists):
        raise UserError(
            f"{origin} has arrays of {shapes} and texts for {sum(lists[0])} responses; this run has {prompts} prompts "
            f"x {samples} samples of at most {longest} tokens. Set them as in the run that saved it."
        )


def _text(archive: Any, name: str) -> Any:
    return json.loads(str(archive[name]))
