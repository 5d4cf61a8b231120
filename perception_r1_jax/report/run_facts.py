"""What the run was: config against the defaults, command, versions, devices, time and memory."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from perception_r1_jax.config import default_config
from perception_r1_jax.report.series import column
from perception_r1_jax.report.workdir import Workdir

JUDGING = {"time/judge_hidden": "judging, hidden", "time/judge_exposed": "judging, exposed"}
"""Metrics of time that are no stage: they lie across the stages."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of the run: its name, seconds in all, and their share of the whole run's."""

    name: str
    seconds: float
    share: float


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What the run was.

    Attributes:
        changed: config field -> (default, value) where they differ; None for a field that only one of the two has.
        command: as it was given.
        record: `run.json`, with commit, versions, devices and hashes.
        steps, responses, tokens: what the loop did.
        seconds: of the whole run; None before it has ended.
        stages: seconds by stage of the steps, and the rest.
        judging: seconds of judging, hidden behind other work and exposed; empty for a run without.
        peak_bytes: the most memory that the process has held; None where it is not known.
    """

    changed: Mapping[str, tuple[Any, Any]]
    command: str
    record: Mapping[str, Any]
    steps: int
    responses: int
    tokens: int
    seconds: float | None
    stages: Sequence[Stage]
    judging: Mapping[str, float]
    peak_bytes: float | None


def collect_facts(workdir: Workdir, lines: Sequence[Mapping[str, Any]]) -> RunFacts:
    """Puts together what `run.json`, `result.json` and the metrics say."""
    per_step = [workdir.setting(f"rollout.{name}") or 0 for name in ("prompts_per_step", "samples_per_prompt")]
    return RunFacts(
        changed=config_changes(workdir.record["config"]),
        command=shlex.join(map(str, workdir.record.get("command", ()))),
        record=workdir.record,
        steps=len(lines),
        responses=len(lines) * per_step[0] * per_step[1],
        tokens=int(_total(lines, "rollout/tokens")),
        seconds=workdir.result.get("seconds"),
        stages=_stages(lines, workdir.result),
        judging={name: _total(lines, metric) for metric, name in JUDGING.items() if lines and metric in lines[0]},
        peak_bytes=workdir.result.get("peak_rss_bytes") or _peak(lines),
    )


def config_changes(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field -> (default, value) where a run's config is not the default."""
    default, here = (
        traverse_util.flatten_dict(tree, sep=".")
        for tree in (json.loads(default_config().to_json_best_effort()), config)
    )
    names = [*default, *(name for name in here if name not in default)]
    return {name: (default.get(name), here.get(name)) for name in names if default.get(name) != here.get(name)}


def _stages(lines: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[Stage]:
    """Stages in the order of the loop, then what the steps do not tell."""
    others = {"time/step", *JUDGING}
    names = [name for name in (lines[0] if lines else ()) if name.startswith("time/") and name not in others]
    parts = {name.removeprefix("time/"): _total(lines, name) for name in names}
    parts["rest of the steps"] = _total(lines, "time/step") - sum(parts.values())
    parts["evaluations"] = sum(
        (result.get(f"evaluation_{side}") or {}).get("seconds", 0) for side in ("before", "after")
    )
    if "seconds" in result:
        parts["preparation"] = result["seconds"] - _total(lines, "time/step") - parts["evaluations"]
    whole = sum(parts.values())
    return [Stage(name, part, part / whole) for name, part in parts.items() if part > 0]


def _total(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.nansum(column(lines, name)))


def _peak(lines: Sequence[Mapping[str, Any]]) -> float | None:
    gib = [line["memory/peak_rss_gib"] for line in lines if line.get("memory/peak_rss_gib") is not None]
    return max(gib) * 2**30 if gib else None
