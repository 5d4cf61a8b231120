"""What scripts share: flags and config of those that train, and how much memory those with one model give it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, logging
from ml_collections import ConfigDict

from perception_r1_jax.errors import UserError

Train = Callable[[ConfigDict, Path], Any]

WEIGHTS_MEMORY, CACHE_MEMORY = 0.7, 0.2
"""Shares of a device's memory, where nothing is trained beside the model."""

NO_FIELD = re.compile(r"\W*(?:Key \W*)?(\w+)\W*(?:$|does not exist|n?Did you mean)")
"""How the message of a field begins that a config lacks: after the name may come the whole config."""


def run(train: Train, argv: list[str], config: ConfigDict, workdir: str) -> None:
    """Trains; a problem with config, data or models ends the program with one line that says what to do."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; set fields as --config.a.b=VALUE")
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().setLevel("CRITICAL")  # orbax tells each file that it writes; its errors are raised, too
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
            field = NO_FIELD.match(str(error))
            if field is None:
                raise SystemExit(f"error: the config file cannot be read: {error}.") from error
            raise SystemExit(f"error: the config has no field {field[1]!r}; {fields} lists all fields.") from error
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise SystemExit(f"error: {error}") from error

    return parse


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Adds --weights_memory and --cache_memory, of a command that holds one model."""
    parser.add_argument(
        "--weights_memory",
        type=float,
        default=WEIGHTS_MEMORY,
        metavar="SHARE",
        help="of a device's memory that the weights may take; larger ones are split (default %(default)s)",
    )
    parser.add_argument(
        "--cache_memory",
        type=float,
        default=CACHE_MEMORY,
        metavar="SHARE",
        help="of a device's memory for keys and values (default %(default)s)",
    )


def check_memory_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with a message where the shares of the memory cannot be had."""
    weights, cache = args.weights_memory, args.cache_memory
    if not (weights > 0 and cache > 0 and weights + cache <= 1):
        parser.error(f"--weights_memory {weights} --cache_memory {cache}: must be above 0, and at most 1 together")
