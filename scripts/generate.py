"""Answers a question about pictures, or a file of them, from a Hugging Face directory or a converted checkpoint.

    python scripts/generate.py --model DIR --image A.png [--image B.png] --prompt TEXT [--json]
    python scripts/generate.py --model DIR --input prompts.jsonl --output replies.jsonl

Sends one user turn: the pictures in order, then TEXT as it stands. Greedy unless a temperature is given.
A text-only model (Qwen2, Qwen2.5) takes a prompt alone.

A line of the input is {"prompt": TEXT, "images": [PATH, ...], "id": NAME}. Paths are relative to the file's folder;
`images` and `id` are optional, an id is else the line's number. A line of the output, in the input's order, is
{"id", "text", "token_ids", "prompt_tokens", "finish_reason"}, or {"id", "error"} where a prompt has no reply.
A draw depends on the seed and the prompt's id, not on the other prompts. Until the end replies are kept in
OUTPUT.partial; the same command goes on from there.

Exit code: 0 if every prompt has its reply, 1 if one has none or nothing could be done, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from perception_r1_jax.command_line import add_memory_options, check_memory_options

if TYPE_CHECKING:  # at run time after the command line is read: jax takes seconds to load
    from perception_r1_jax.inference import Engine, Sampling
    from perception_r1_jax.inference.replies import Reply
    from perception_r1_jax.processing import Processor

SEEDS = 2**32
SHOWN = 5
"""Faults told in full on stderr; the output has all."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with status 2 and one line for a value that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="Hugging Face directory, converted checkpoint, or training run"
    )
    parser.add_argument(
        "--image", action="append", default=[], type=Path, metavar="FILE", help="a picture; repeat for several"
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT", help="the question, put after the pictures")
    asked.add_argument("--input", type=Path, metavar="FILE", help="many prompts, as JSON lines")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="their replies, as JSON lines; an old file is replaced"
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=16,
        metavar="N",
        help="prompts of one shape answered at once, pictures in memory (default 16), as are as many that wait; where "
        "one is done, the next of its shape begins",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=512, metavar="N", help="limit of the answer in tokens (default 512)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    parser.add_argument(
        "--top_k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens; 0, the default: from all"
    )
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens that have probability P together; 1, the default: from all",
    )
    parser.add_argument(
        "--min_p",
        type=float,
        default=0.0,
        metavar="P",
        help="draw only tokens with at least P times the probability of the likeliest; 0, the default: any",
    )
    parser.add_argument(
        "--repetition_penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1 makes tokens that stand in prompt or answer less likely, as a model's generation_config.json may "
        "ask for; 1, the default, leaves them as they are, whatever that file says",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw, with a temperature (default 0)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in (default float32)"
    )
    add_memory_options(parser)
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
    if args.top_k < 0:
        parser.error(f"--top_k {args.top_k}: must be at least 0")
    if not 0 < args.top_p <= 1:
        parser.error(f"--top_p {args.top_p}: must be above 0 and at most 1")
    if not 0 <= args.min_p <= 1:
        parser.error(f"--min_p {args.min_p}: must be from 0 to 1")
    if not 0 < args.repetition_penalty < math.inf:
        parser.error(f"--repetition_penalty {args.repetition_penalty}: must be a number above 0")
    if args.batch_size < 1:
        parser.error(f"--batch_size {args.batch_size}: must be at least 1")
    if not 0 <= args.seed < SEEDS:
        parser.error(f"--seed {args.seed}: must be from 0 to {SEEDS - 1}")
    check_memory_options(parser, args)
    _check_files(parser, args)
    return args


def _check_files(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with a message where --input, --output and --image do not go together, or cannot be used."""
    if (args.input is None) != (args.output is None):
        parser.error("--input and --output go together: prompts from a file, replies to another")
    if args.input is None:
        return
    if args.image:
        parser.error("--image goes with --prompt; the lines of --input name their own pictures")
    if not args.input.is_file():
        parser.error(f"--input {args.input}: no such file")
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"--output {args.output}: name a file in a folder that exists")
    if args.output.exists() and args.output.samefile(args.input):
        parser.error(f"--output {args.output} is the input file; write to another one")


def generate(args: argparse.Namespace) -> dict[str, Any]:
    """The answer to one prompt: `text`, `token_ids`, `prompt_tokens`, `finish_reason`.

    Raises:
        OSError, UserError: no device, a model directory that cannot be used, or no reply.
        DroppedProblem: a picture or a text that cannot be used.
    """
    import jax

    from perception_r1_jax.errors import UserError
    from perception_r1_jax.inference.replies import reply
    from perception_r1_jax.records import Problem

    processor = load_processor(args)
    prompt = processor.prompt(Problem("prompt", args.prompt, tuple(args.image), answer=""), markers=False)
    answers: list[Reply] = []
    reply(
        load_engine(args),
        processor,
        [prompt],
        make_sampling(args, processor),
        jax.random.key(args.seed),
        batch_size=1,
        bucket_of=lambda prompt: (len(prompt.tokens), len(prompt.vision.image_ids)),
        on_reply=lambda _, answer: answers.append(answer),
    )
    (answer,) = answers
    if answer.text is None:
        raise UserError(answer.fault)
    return fields_of(answer)


def generate_file(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Writes the replies to a file of prompts, and returns its lines.

    Raises:
        OSError, UserError: as `generate`, an input that cannot be used, or the partial output of another job.
    """
    import functools

    import jax
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from perception_r1_jax.data.prompt_file import read_prompts
    from perception_r1_jax.inference.replies import prompts_or_faults, reply
    from perception_r1_jax.inference.reply_file import ReplyFile
    from perception_r1_jax.processing import own_bucket

    asked = read_prompts(args.input)
    processor = load_processor(args)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with (
        ReplyFile(args.output, settings(args)) as kept,
        Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress,
    ):
        names = {str(name): name for name in asked if name not in kept.rows}
        task = progress.add_task("generating", total=len(asked), completed=len(asked) - len(names))

        def keep(name: str, answer: Reply) -> None:
            kept.add({"id": names[name], **fields_of(answer)})
            progress.update(task, completed=len(kept.rows))

        reply(
            load_engine(args),
            processor,
            prompts_or_faults(functools.partial(processor.prompt, markers=False), [asked[n] for n in names.values()]),
            make_sampling(args, processor),
            jax.random.key(args.seed),
            batch_size=max(1, min(args.batch_size, len(names))),  # a short file fills no rows with nothing
            bucket_of=own_bucket,
            on_reply=keep,
        )
        kept.finish(asked)
        return [kept.rows[name] for name in asked]


def fields_of(answer: Reply) -> dict[str, Any]:
    """What is written of a reply."""
    if answer.text is None:
        return {"error": answer.fault}
    return {
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "prompt_tokens": answer.prompt_tokens,
        "finish_reason": answer.finish_reason,
    }


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """All that the replies to a file depend on, as JSON has it. A training run is its latest step, which changes."""
    from perception_r1_jax.weights import locate_model

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "dtype")
    return {
        "model": str(locate_model(args.model).weights),
        "input_sha256": hashlib.sha256(args.input.read_bytes()).hexdigest(),
        **{name: getattr(args, name) for name in names},
    }


def load_processor(args: argparse.Namespace) -> Processor:
    """The model's processor, once there is a device."""
    from perception_r1_jax.processing import Processor
    from perception_r1_jax.weights import locate_model

    check_devices()
    return Processor.from_directory(locate_model(args.model).model_dir)


def load_engine(args: argparse.Namespace) -> Engine:
    """The model on all devices, read parameter by parameter: it is never held twice."""
    import functools

    import jax.numpy as jnp

    from perception_r1_jax.inference import Engine
    from perception_r1_jax.models import load_config
    from perception_r1_jax.sharding import make_mesh
    from perception_r1_jax.weights import locate_model, stream_params

    config = load_config(locate_model(args.model).model_dir)
    engine = Engine(
        config,
        None,
        make_mesh(),
        dtype=jnp.dtype(args.dtype),
        weights_memory=args.weights_memory,
        cache_memory=args.cache_memory,
    )
    engine.read(functools.partial(stream_params, args.model, config))
    return engine


def make_sampling(args: argparse.Namespace, processor: Processor) -> Sampling:
    """How tokens are drawn."""
    from perception_r1_jax.inference import Sampling

    return Sampling(
        args.max_new_tokens,
        processor.stop_ids,
        processor.pad_id,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        banned_ids=processor.banned_ids,
    )


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
    """Reads the command line, prints or writes the answers; exits with status 1 and a message where there are none."""
    args = parse_arguments(argv)
    from perception_r1_jax.data.errors import DroppedProblem
    from perception_r1_jax.errors import UserError

    try:
        done = generate(args) if args.input is None else generate_file(args)
    except DroppedProblem as dropped:
        raise SystemExit(f"error: {dropped.fault}") from dropped
    except (OSError, UserError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        more = f" The same command goes on from {args.output}.partial." if args.output else ""
        raise SystemExit(f"stopped.{more}") from None
    if args.input is None:
        sys.stdout.reconfigure(encoding="utf-8")  # the answer may hold any character, whatever the locale
        print(json.dumps(done, ensure_ascii=False) if args.json else done["text"])
    else:
        report(args.output, done)


def report(output: Path, rows: list[dict[str, Any]]) -> None:
    """Says on stderr what became of the prompts; exits with status 1 where one has no reply."""
    faults = [f"{row['id']}: {row['error']}" for row in rows if "error" in row]
    print(f"{output}: {len(rows) - len(faults)} of {len(rows)} prompts have a reply", file=sys.stderr)
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise SystemExit("\n  ".join([f"none for {len(faults)}:", *faults[:SHOWN]]) + more)


if __name__ == "__main__":
    main()
