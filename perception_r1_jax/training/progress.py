"""The progress bar of a run, with an estimate of what is left and the latest numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SPEED_SECONDS = 86400.0
"""How long the estimate looks back. A step may take minutes, and it takes two of them."""


@contextmanager
def progress_bar(
    first: int, steps: int, console: Console, shown: Mapping[str, str]
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Shows `first` of `steps` done; call what it yields after each step with the step's metrics.

    `shown` has the metrics to show, by what to call them there.

    Where the console is no terminal nothing is drawn: the line of each step says it all.
    """
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[latest]}"),
    )
    bar = Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=SPEED_SECONDS)
    with bar as progress:
        task = progress.add_task("training", total=steps, completed=first, latest="")

        def advance(metrics: Mapping[str, float]) -> None:
            latest = "  ".join(f"{name} {metrics[metric]:.3f}" for name, metric in shown.items())
            progress.update(task, advance=1, latest=latest)

        yield advance
