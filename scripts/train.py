"""Trains a vision-language model by GRPO with a visual perception reward.

    python scripts/train.py --config configs/NAME.py --workdir DIR [--config.a.b=VALUE ...]

A run that was stopped goes on from its latest checkpoint when the same command is given again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; --config.a.b=VALUE overrides a field of it.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics, samples and results.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Trains; a problem with config, data or models ends the program with one line that says what to do."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; set fields as --config.a.b=VALUE")
    from perception_r1_jax.errors import UserError
    from perception_r1_jax.training.loop import train
    from perception_r1_jax.training.setup import prepare

    logging.set_verbosity(logging.WARNING)  # orbax tells each file that it writes
    try:
        train(prepare(CONFIG.value, Path(WORKDIR.value)))
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped at once; the same command goes on from the latest checkpoint.") from None


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the command line and the config file; a field that the config does not have is named."""
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:
        field = re.search(r"[a-zA-Z_]\w*", re.sub(r"^\W*Key ", "", str(error)))[0]  # the rest is the whole config
        message = f"error: the config has no field {field!r}; perception_r1_jax/config.py lists all fields."
        raise SystemExit(message) from error
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
