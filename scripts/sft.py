"""Trains a vision-language model, or a text model, on conversations (docs/sft.md).

    python scripts/sft.py --config configs/NAME.py --workdir DIR [--config.a.b=VALUE ...]

A run that was stopped goes on from its latest checkpoint when the same command is given again.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import app, flags
from ml_collections import config_flags

from perception_r1_jax.command_line import flags_parser, run

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; --config.a.b=VALUE overrides a field of it.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and results.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Trains."""
    from perception_r1_jax.sft.loop import train
    from perception_r1_jax.sft.setup import prepare

    run(lambda config, workdir: train(prepare(config, workdir)), argv, CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser("perception_r1_jax/sft/config.py"))
