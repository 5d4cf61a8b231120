"""Which runs the ablation is made of, and how far each of them is."""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from perception_r1_jax.claim.variants import FULL, VARIANTS, changed_fields
from perception_r1_jax.config import resolve
from perception_r1_jax.data import load_problems
from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.checker import FUNCTIONS, load_checker
from perception_r1_jax.json_files import read_json
from perception_r1_jax.training.run_record import RECORD, hash_problems

NEW, BEGUN, FINISHED, RECORDED = "new", "begun", "finished", "recorded"

CHECKER_FUNCTIONS = (*FUNCTIONS, "reflected", "traits")
"""What a run's evaluation and its record ask of the checker."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed.

    Attributes:
        variant: its name.
        seed: of the run.
        config_file: what `scripts/train.py` reads.
        changes: dotted config fields -> values that the run sets otherwise than that file, the seed included.
        config: the resolved config by dotted names, as `run.json` has it.
        hashes: of the problems to learn from ("data") and to be evaluated on ("evaluation"), as `run.json` has them.
            Not of the models: the same weights have another hash after each conversion.
        workdir: of the run.
        record: the file that keeps its results.
    """

    variant: str
    seed: int
    config_file: Path
    changes: Mapping[str, Any]
    config: Mapping[str, Any]
    hashes: Mapping[str, str]
    workdir: Path
    record: Path

    @property
    def name(self) -> str:
        """As its folder and its record are named."""
        return f"{self.variant}-{self.seed}"

    @property
    def arguments(self) -> list[str]:
        """Of `scripts/train.py`."""
        fields = [f"--config.{field}={value}" for field, value in self.changes.items()]
        return ["--config", str(self.config_file), "--workdir", str(self.workdir), *fields]

    def state(self) -> str:
        """NEW, BEGUN (it goes on from its checkpoint), FINISHED (not recorded yet) or RECORDED.

        Raises:
            UserError: what is there was made with another config or of other problems; the message names what differs.
        """
        if self.record.is_file():
            self._check(self.record, read_json(self.record)["run"])
            return RECORDED
        return self.progress()

    def progress(self) -> str:
        """NEW, BEGUN or FINISHED, by the working directory alone; raises as `state` does."""
        if not (self.workdir / RECORD).is_file():
            return NEW
        self._check(self.workdir, read_json(self.workdir / RECORD))
        return FINISHED if (self.workdir / "result.json").is_file() else BEGUN

    def _check(self, place: Path, made: Mapping[str, Any]) -> None:
        there = flatten({**made["config"], "hashes": made["hashes"]})
        here = {**self.config, **flatten({"hashes": self.hashes})}
        if names := differing(there, here):
            fields = "; ".join(f"{name} is {there[name]!r} there and {here[name]!r} here" for name in names)
            raise UserError(
                f"{place} is of another run: {fields}. To run it anew move {place} away or choose another "
                f"{'--out' if place == self.record else '--runs'}; to keep it set config and data back."
            )


def plan_runs(
    config_file: Path, variants: Sequence[str], seeds: Sequence[int] | None, runs: Path, out: Path
) -> list[PlannedRun]:
    """The runs of these variants, each with its own seeds or with those given, seed by seed.

    A variant that sets nothing otherwise than the config is the full recipe, and has no runs of its own.

    Raises:
        UserError, OSError: the config or its data cannot be used as they are, or it has no evaluation with a checker.
    """
    hashes = _hash_data(config_file)
    planned = [
        _plan(config_file, variant, seed, hashes, runs, out)
        for variant in variants
        for seed in (VARIANTS[variant].seeds if seeds is None else seeds)
    ]
    # All variants of seed 0 come first, so that the first results are pairs.
    return sorted((run for run in planned if run is not None), key=lambda run: run.seed)


def _hash_data(config_file: Path) -> dict[str, str]:
    """`PlannedRun.hashes`: no variant has other data than the config file."""
    config = resolve(_read(config_file))
    for field in ("split", "checker"):
        if not config.evaluation[field]:
            raise UserError(f"config.evaluation.{field} of {config_file} is empty: without it nothing is measured.")
    load_checker(config.evaluation.checker, CHECKER_FUNCTIONS)
    data, _ = load_problems(config.data.path, config.data.split)
    evaluated, _ = load_problems(config.data.path, config.evaluation.split)
    return {
        "data": hash_problems(data),
        "evaluation": hash_problems(evaluated[: config.evaluation.problems or None]),
    }


def _read(config_file: Path) -> ConfigDict:
    return runpy.run_path(str(config_file))["get_config"]()


def _plan(
    config_file: Path, variant: str, seed: int, hashes: Mapping[str, str], runs: Path, out: Path
) -> PlannedRun | None:
    config = _read(config_file)
    changes = changed_fields(variant, flatten(config.to_dict()))
    if not changes and variant != FULL:
        return None
    changes = {"seed": seed, **changes}
    config.update_from_flattened_dict(changes)
    values = flatten(json.loads(resolve(config).to_json_best_effort()))
    name = f"{variant}-{seed}"
    return PlannedRun(variant, seed, config_file, changes, values, hashes, runs / name, out / f"{name}.json")


def differing(config: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the fields that differ between two flat configs; what only one of them knows is of another version."""
    return sorted(name for name in config.keys() & other.keys() if config[name] != other[name])


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config by dotted names."""
    return traverse_util.flatten_dict(config, sep=".")


def describe(runs: Iterable[PlannedRun]) -> str:
    """Names of runs, in one line; "none" without any."""
    return ", ".join(run.name for run in runs) or "none"
