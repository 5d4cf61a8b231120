"""Where a run prints."""

from __future__ import annotations

import os

from rich.console import Console


class RunConsole(Console):
    """Prints lines as they are. Where nobody reads them any more, the run goes on without.

    Ctrl-C at `... | tee log` ends `tee` as well, and the run must still be saved.
    """

    def __init__(self):
        super().__init__(soft_wrap=True, highlight=False)

    def on_broken_pipe(self) -> None:
        """What is still buffered, and what others print, goes nowhere."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)
