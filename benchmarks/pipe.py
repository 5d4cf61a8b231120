"""A program in an environment of its own, asked over a pipe: a line of JSON for each line that it is sent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any


class Pipe:
    """A process that answers lines, until the `with` block ends it."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None):
        """Starts it and waits for its first line, which says that it is ready.

        Args:
            name: of the program, for messages.
            command: that runs it.
            environment: variables beside those of this process.

        Raises:
            RuntimeError: it has ended; so does `ask`.
        """
        self._name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {})
        )
        self._answer()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(BrokenPipeError):  # what was not sent to one that has ended
            self._process.stdin.close()
        self._process.wait()

    def ask(self, line: str) -> Any:
        """What it answers to a line."""
        with contextlib.suppress(BrokenPipeError):  # that it has ended is told where its answer is missing
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self._name} has ended with status {self._process.wait()}; its messages stand above. One of -9 with "
                "no message is a machine out of memory."
            )
        return json.loads(line)
