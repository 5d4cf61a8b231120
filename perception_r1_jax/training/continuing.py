"""Whether a working directory's run is the one that a config continues, and what has changed since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util

from perception_r1_jax.errors import UserError

FIXED = (
    "config.seed",
    "config.fidelity",
    "config.data.shuffle",
    "config.model.freeze_vision",
    "config.rollout.prompts_per_step",
    "config.rollout.samples_per_prompt",
    "hashes.data",
)
"""What a run cannot change on its way: keys, data position and optimizer state would mean something else."""


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
