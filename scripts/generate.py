"""Answers a question about pictures, from a Hugging Face directory or a converted checkpoint.

    python scripts/generate.py --model DIR --image A.png [--image B.png] --prompt TEXT [--json]

Sends one user turn: the pictures in order, then TEXT as it stands. Greedy unless a temperature is given.
A text-only model (Qwen2, Qwen2.5) takes a prompt alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SEEDS = 2**32


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with status 2 and one line for a value that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="Hugging Face directory, converted checkpoint, or training run"
    )
    parser.add_argument(
        "--image", action="append", default=[], type=Path, metavar="FILE", help="a picture; repeat for several"
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the question, put after the pictures")
    parser.add_argument(
        "--max_new_tokens", type=int, default=512, metavar="N", help="limit of the answer in tokens (default 512)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw, with a temperature (default 0)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in (default float32)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object (text, token_ids, prompt_tokens, finish_reason) instead of the text",
    )
    args = parser.parse_args(argv)
    if args.max_new_tokens < 1:
        parser.error(f"--max_new_tokens {args.max_new_tokens}: must be at least 1")
    if not 0 <= args.temperature < math.inf:
        parser.error(f"--temperature {args.temperature}: must be a number from 0 up")
    if not 0 <= args.seed < SEEDS:
        parser.error(f"--seed {args.seed}: must be from 0 to {SEEDS - 1}")
    return args


def generate(args: argparse.Namespace) -> dict:
    """The answer: `text`, `token_ids`, `prompt_tokens`, `finish_reason`.

    Raises:
        OSError, UserError: no device, or a model directory that cannot be used.
        DroppedProblem: a picture or a text that cannot be used.
    """
    import jax
    import jax.numpy as jnp

    from perception_r1_jax.inference import Engine, Sampling
    from perception_r1_jax.models import load_config
    from perception_r1_jax.processing import Processor, batch_prompts
    from perception_r1_jax.records import FINISH_LENGTH, FINISH_STOP, Problem
    from perception_r1_jax.sharding import make_mesh
    from perception_r1_jax.weights import load_params, locate_model

    check_devices()
    model_dir = locate_model(args.model).model_dir
    config, processor = load_config(model_dir), Processor.from_directory(model_dir)
    prompt = processor.prompt(Problem("prompt", args.prompt, tuple(args.image), answer=""), markers=False)
    batch = batch_prompts(
        [prompt], rows=1, length=len(prompt.tokens), windows=len(prompt.vision.image_ids), pad_id=processor.pad_id
    )
    sampling = Sampling(
        args.max_new_tokens,
        processor.stop_ids,
        processor.pad_id,
        temperature=args.temperature,
        banned_ids=processor.banned_ids,
    )
    mesh = make_mesh()
    engine = Engine(config, load_params(args.model, config, mesh, jnp.dtype(args.dtype)), mesh)
    out = engine.generate(batch, 1, sampling, jax.random.key(args.seed))
    token_ids = out.tokens[0, 0][out.mask[0, 0]]
    return {
        "text": processor.decode(token_ids),
        "token_ids": token_ids.tolist(),
        "prompt_tokens": len(prompt.tokens),
        "finish_reason": FINISH_STOP if out.stopped[0, 0] else FINISH_LENGTH,
    }


def check_devices() -> None:
    """Raises `UserError` where `JAX_PLATFORMS` names a platform that jax cannot start."""
    import jax

    from perception_r1_jax.errors import UserError

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        detail = " ".join(str(error).split()) or "it has no device"
        raise UserError(f"JAX_PLATFORMS={jax.config.jax_platforms} cannot be used: {detail}") from error


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, prints the answer; exits with status 1 and a message where there can be none."""
    args = parse_arguments(argv)
    from perception_r1_jax.data.errors import DroppedProblem
    from perception_r1_jax.errors import UserError

    try:
        answer = generate(args)
    except DroppedProblem as dropped:
        raise SystemExit(f"error: {dropped.fault}") from dropped
    except (OSError, UserError) as error:
        raise SystemExit(f"error: {error}") from error
    sys.stdout.reconfigure(encoding="utf-8")  # the answer may hold any character, whatever the locale
    print(json.dumps(answer, ensure_ascii=False) if args.json else answer["text"])


if __name__ == "__main__":
    main()
