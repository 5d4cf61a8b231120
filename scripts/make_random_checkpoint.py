"""Writes a small random checkpoint of any family in the published Hugging Face layout, without torch.

    python scripts/make_random_checkpoint.py --family qwen2_5_vl --out DIR [--config_overrides FILE] [--tokenizer DIR]

Token ids and vocabulary size follow the tokenizer, by default the package's small one. The weights are large
enough for a missing part of the model to show (see `perception_r1_jax/weights/random_checkpoint.py`). A model to train
starts better from `--scale 1 --spread 0`: normal matrices of standard deviation 0.02, no biases, norms of one. Small
hidden sizes want more: the Makefile takes `--scale 3` for the small policy and judge.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from perception_r1_jax.errors import UserError
from perception_r1_jax.json_files import read_json
from perception_r1_jax.weights.convert import check_free
from perception_r1_jax.weights.random_checkpoint import FAMILIES, write_random_checkpoint


def json_file(name: str) -> dict[str, Any]:
    """The object in a file."""
    if not Path(name).is_file():
        raise argparse.ArgumentTypeError(f"{name} does not exist")
    try:
        return read_json(Path(name))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main() -> None:
    """Reads the command line and writes the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="qwen2_5_vl", help="default %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="new or empty directory to write to")
    parser.add_argument("--tokenizer", type=Path, help="directory of tokenizer and side files to copy")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default %(default)s)")
    parser.add_argument(
        "--scale",
        type=float,
        default=6.0,
        help="matrices, in units of the default initialisation (default %(default)s)",
    )
    parser.add_argument(
        "--spread", type=float, default=0.2, help="of biases and norms, about 0 and 1 (default %(default)s)"
    )
    parser.add_argument("--config_overrides", type=json_file, help="JSON file with fields of config.json to set")
    parser.add_argument(
        "--preprocessor_overrides", type=json_file, help="JSON file with fields of preprocessor_config.json to set"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="default %(default)s"
    )
    args = parser.parse_args()
    try:
        check_free(args.out)
        write_random_checkpoint(
            args.out,
            args.family,
            args.config_overrides,
            tokenizer_dir=args.tokenizer,
            preprocessor_overrides=args.preprocessor_overrides,
            seed=args.seed,
            scale=args.scale,
            spread=args.spread,
            dtype=args.dtype,
        )
    except (OSError, UserError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"random {args.family} checkpoint written to {args.out}")


if __name__ == "__main__":
    main()
