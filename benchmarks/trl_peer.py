"""TRL as a peer: asked over a pipe, since it needs an environment of its own.

`TRL_PYTHON` names that environment's Python; without it there is no peer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks.made import Made
from benchmarks.pipe import Pipe
from benchmarks.side import KEEP_FREED_MEMORY, MIB
from perception_r1_jax.processing import Processor

VARIABLE = "TRL_PYTHON"

DEFAULTS = {"rows": 8, "more": {}}

TUNED = {"rows": 4, "more": {"gradient_checkpointing": False, "optim": "adamw_torch_fused"}}
"""Instead of the defaults at its best: no layer is computed again, and AdamW is one kernel. Of 8 responses at a time
the activations would then take 18 GiB and more."""


class TrlPeer:
    """TRL's GRPOTrainer, in float32 and on all cores, in a process that ends with the `with` block."""

    def __init__(self, config: ConfigDict, processor: Processor, problems: Sequence[dict[str, str]], *, tuned: bool):
        """Starts it.

        Args:
            config: the run's that ours has.
            processor: of its model.
            problems: as `trl_side` takes them.
            tuned: with the settings that are best for it here; else with its defaults.
        """
        rollout, reward, optimizer = config.rollout, config.reward, config.optimizer
        settings = {
            "model": config.model.path,
            "problems": problems,
            "samples": rollout.samples_per_prompt,
            "new_tokens": rollout.min_new_tokens,
            "banned": list(processor.banned_ids),
            "weights": {name: reward[f"{name}_weight"] for name in ("format", "accuracy", "repetition", "custom")},
            "ngram_size": reward.ngram_size,
            "repetition_max_penalty": reward.repetition_max_penalty,
            "learning_rate": optimizer.learning_rate,
            "weight_decay": optimizer.weight_decay,
            **(TUNED if tuned else DEFAULTS),
        }
        command = [os.environ[VARIABLE], str(Path(__file__).with_name("trl_side.py")), json.dumps(settings)]
        self._pipe = Pipe("TRL", command, KEEP_FREED_MEMORY if tuned else None)
        self._peak = 0

    def __enter__(self) -> TrlPeer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.__exit__(*error)

    def __call__(self) -> Made:
        """Takes a step."""
        said = self._pipe.ask("step")
        self._peak = said["peak_bytes"] / MIB
        return Made.of(said["prompts"], said["lengths"], said["rewards"])

    def peak(self) -> float:
        """The most memory until the end of the last step, in MiB."""
        return self._peak
