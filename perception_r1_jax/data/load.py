"""One door to every data source: a path (or none) becomes problems and a report of the scan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from perception_r1_jax.data.errors import DataError, DroppedProblem
from perception_r1_jax.data.geometry3k import read_geometry3k
from perception_r1_jax.data.geometry_world.problems import SIZES, make_problem
from perception_r1_jax.data.parquet import read_parquet
from perception_r1_jax.data.scan import ScanReport, scan
from perception_r1_jax.records import Problem

WORLD = "geometry_world"
"""As a path: the world's problems, drawn on the spot."""


def load_problems(
    path: str | Path, split: str = "train", field: str = "data.split"
) -> tuple[list[Problem], ScanReport]:
    """Reads and scans one split.

    Args:
        path: a folder with `{split}.jsonl` (Geometry3K) or `{split}*.parquet` (the authors' columns), one
            parquet file (which is then the split, whatever its name), or "geometry_world" for drawn problems.
        split: "train", "val", "test", or as the files are named.
        field: of the config that says the split, for messages.

    Returns:
        The usable problems in the order of the source, and what became of every row.

    Raises:
        DataError: nothing is there, a file cannot be used at all, or no row of it can.
    """
    report = ScanReport(f"{path} ({split})")
    problems = scan(_read(str(path), split, field, report), report)
    if not problems:
        raise DataError(f"No usable problem in {path}. What was found:\n{report.summary()}")
    return problems, report


def _read(path: str, split: str, field: str, report: ScanReport) -> Iterator[Problem | DroppedProblem]:
    if path == WORLD:
        return _draw(split, field)
    source = Path(path)
    if not source.exists():
        raise DataError(f"No data at {source.absolute()}. Set data.path to a folder or parquet file, or to {WORLD!r}.")
    if source.is_file() and source.suffix == ".parquet":
        return read_parquet(source)
    if source.is_file() and source.suffix == ".jsonl":
        raise DataError(
            f"{source} is one file of a folder. Set data.path to {source.absolute().parent} and data.split to "
            f"{source.stem!r}."
        )
    if (source / f"{split}.jsonl").is_file():
        return read_geometry3k(source, split, report)
    files = sorted(source.glob(f"{split}*.parquet"))
    if not files and (there := splits_in(source)):
        raise DataError(f"{source} has no {split}.jsonl or {split}*.parquet. Set {field} to one of {', '.join(there)}.")
    if not files:
        raise DataError(f"{source} is no parquet file and no folder with {split}.jsonl or {split}*.parquet.")
    return itertools.chain.from_iterable(map(read_parquet, files))


def splits_in(folder: Path) -> list[str]:
    """The splits of which a folder has files, by how their names begin."""
    files = (path for ending in ("jsonl", "parquet") for path in folder.glob(f"*.{ending}"))
    return sorted({path.stem.partition("-")[0] for path in files})


def _draw(split: str, field: str) -> Iterator[Problem]:
    if split not in SIZES:
        raise DataError(f"The geometry world has no split {split!r}; set {field} to one of {', '.join(SIZES)}.")
    return (make_problem(index, split).problem() for index in range(SIZES[split]))
