"""What the training scripts share: reading flags and config, and ending with one line where they cannot go on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, logging
from ml_collections import ConfigDict

from perception_r1_jax.errors import UserError

Train = Callable[[ConfigDict, Path], Any]


def run(train: Train, argv: list[str], config: ConfigDict, workdir: str) -> None:
    """Trains; a problem with config, data or models ends the program with one line that says what to do."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; set fields as --config.a.b=VALUE")
    logging.set_verbosity(logging.WARNING)  # orbax tells each file that it writes
    try:
        train(config, Path(workdir))
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped at once; the same command goes on from the latest checkpoint.") from None


def flags_parser(fields: str) -> Callable[[list[str]], list[str]]:
    """Reads the command line and the config file; a field that the config does not have is named.

    Args:
        fields: the file that lists all fields, for the message.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            return app.parse_flags_with_usage(argv)
        except AttributeError as error:
            field = re.search(r"[a-zA-Z_]\w*", re.sub(r"^\W*Key ", "", str(error)))[0]  # the rest is the whole config
            message = f"error: the config has no field {field!r}; {fields} lists all fields."
            raise SystemExit(message) from error
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise SystemExit(f"error: {error}") from error

    return parse
