"""The progress bar of a run, with an estimate of what is left and the latest rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOWN = ("total", "accuracy", "visual", "format", "repetition")


@contextmanager
def progress_bar(first: int, steps: int, console: Console) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Shows `first` of `steps` done; call what it yields after each step with the step's metrics.

    Where the console is no terminal nothing is drawn: the line of each step says it all.
    """
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rewards]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=steps, completed=first, rewards="")

        def advance(metrics: Mapping[str, float]) -> None:
            rewards = "  ".join(f"{name} {metrics[f'reward/{name}']:.3f}" for name in SHOWN)
            progress.update(task, advance=1, rewards=rewards)

        yield advance
