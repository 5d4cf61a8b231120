"""Exports a checkpoint of this project as a Hugging Face directory in the published layout.

    python -m tools.convert_weights.jax_to_hf --checkpoint DIR --out DIR [--dtype bfloat16] [--max_shard_gb 5]

The checkpoint is a converted one, a training run's working directory (its latest step), or one step of it.
"""

from __future__ import annotations

import argparse
import math
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from perception_r1_jax.errors import UserError
from perception_r1_jax.weights import export_huggingface
from tools.convert_weights.hf_to_jax import DTYPES


def shard_size(text: str) -> float:
    """A number above 0."""
    size = float(text)
    if not 0 < size < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return size


def main() -> None:
    """Reads the command line and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="directory to export")
    parser.add_argument("--out", required=True, help="new or empty directory to write to")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; by default as stored")
    parser.add_argument(
        "--max_shard_gb", type=shard_size, default=5.0, help="size of one safetensors file, in 10^9 bytes (default 5)"
    )
    args = parser.parse_args()
    try:
        export_huggingface(args.checkpoint, args.out, args.dtype, int(args.max_shard_gb * 10**9))
    except (OSError, UserError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"Hugging Face directory written to {args.out}")


if __name__ == "__main__":
    main()
