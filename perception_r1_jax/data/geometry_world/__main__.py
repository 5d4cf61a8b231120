"""Writes problems of the geometry world as a data set.

    python -m perception_r1_jax.data.geometry_world --out DIR [--seed 0] [--train 2000] [--val 400] [--test 400]

DIR then has train.parquet, val.parquet and test.parquet with the columns `problem`, `answer`, `images` and
`visual_key_info`, as the authors of Perception-R1 name them, and the world's own beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from perception_r1_jax.data.geometry_world.problems import SIZES
from perception_r1_jax.data.geometry_world.write import write_split


def main() -> None:
    """Reads the command line and writes a file for each split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other problems")
    for split, size in SIZES.items():
        parser.add_argument(f"--{split}", type=int, default=size, help=f"number of problems (default {size})")
    args = parser.parse_args()
    for split in SIZES:
        write_split(args.out / f"{split}.parquet", split, getattr(args, split), args.seed)
    print(f"the geometry world, seed {args.seed}, is in {args.out}")


if __name__ == "__main__":
    main()
