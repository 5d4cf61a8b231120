"""Converts a Hugging Face directory of Qwen2.5-VL or Qwen2.5 to a checkpoint of this project.

    python -m tools.convert_weights.hf_to_jax --hf DIR --out DIR [--dtype bfloat16]

The result holds config, tokenizer and the other side files at its root, and the parameters in `params/`.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from perception_r1_jax.errors import UserError
from perception_r1_jax.weights import convert_huggingface

DTYPES = ("float32", "float16", "bfloat16")


def main() -> None:
    """Reads the command line and converts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", required=True, help="directory with config.json and safetensors files")
    parser.add_argument("--out", required=True, help="new or empty directory to write to")
    parser.add_argument("--dtype", choices=DTYPES, help="of the parameters; by default as stored")
    args = parser.parse_args()
    try:
        convert_huggingface(args.hf, args.out, args.dtype)
    except (OSError, UserError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"converted checkpoint written to {args.out}")


if __name__ == "__main__":
    main()
