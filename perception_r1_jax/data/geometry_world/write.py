"""The world as a data set of files: the authors' parquet columns, and what only the world knows beside them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from perception_r1_jax.data.geometry_world.problems import make_problem

ROWS_WRITTEN = 256


def write_split(path: Path, split: str, problems: int, seed: int) -> None:
    """Writes the first problems of a split to a parquet file, whose pictures are encoded inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    rows = (make_problem(index, split, seed).row() for index in range(problems))
    first = pa.Table.from_pylist(list(itertools.islice(rows, ROWS_WRITTEN)))
    with pq.ParquetWriter(unfinished, first.schema) as writer:
        writer.write_table(first)
        while chunk := list(itertools.islice(rows, ROWS_WRITTEN)):
            writer.write_table(pa.Table.from_pylist(chunk, first.schema))
    unfinished.replace(path)
