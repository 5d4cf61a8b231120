"""Serves a judge over HTTP as an OpenAI-compatible endpoint, for runs on other machines (docs/judge.md).

    python scripts/serve_judge.py --model DIR [--host 0.0.0.0] [--port 8000]

A run asks it with --config.judge.path=http://HOST:8000/v1, scripts/score.py with --judge http://HOST:8000/v1. Both
sides need the same judge prompt. Whatever requests are waiting are judged together.

    POST /v1/chat/completions   messages in the form of the judge's prompt; answered greedily
    GET  /v1/models             the one model
    GET  /health                {"status": "ok", "model": NAME, "waiting": requests in line}

SIGTERM or Ctrl-C answers what has been asked, then ends; a second one ends at once. There is no encryption and no key:
listen only where you trust who can connect.

Exit code: 0 after a stop, 1 if the model or the address cannot be used, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from perception_r1_jax.command_line import add_memory_options, check_memory_options
from perception_r1_jax.errors import UserError

if TYPE_CHECKING:  # at run time after the command line is read: jax takes seconds to load
    from perception_r1_jax.judge.server import JudgeServer


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with status 2 and one line for a value that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="Hugging Face, converted or working directory")
    parser.add_argument("--tokenizer", default="", metavar="DIR", help="where it is not the model's own")
    parser.add_argument("--name", metavar="NAME", help="of the model, for clients (default: the directory's)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one and prints it (default %(default)s)")
    parser.add_argument("--prompt", default="", metavar="FILE", help="JSON file of another wording (docs/judge.md)")
    parser.add_argument(
        "--mode",
        choices=("constrained", "free"),
        default="constrained",
        help="'constrained', the default, reads only the digits of the known answer form; 'free' lets the model write",
    )
    parser.add_argument(
        "--max_prompt_tokens", type=int, default=8192, metavar="N", help="a longer request is refused (default 8192)"
    )
    parser.add_argument(
        "--max_thought_tokens",
        type=int,
        default=0,
        metavar="N",
        help="tokens of thoughts before a constrained answer, up to </think> (default 0: none)",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=512, metavar="N", help="limit of an answer in tokens (default 512)"
    )
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="requests judged at once (default 16)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="to compute in (default bfloat16)"
    )
    parser.add_argument("--weights_int8", action="store_true", help="keep the matrices in 8 bits: half of bfloat16")
    add_memory_options(parser)
    parser.add_argument(
        "--fidelity",
        choices=("default", "paper"),
        default="default",
        help="'paper': texts come as they are, not sanitised",
    )
    args = parser.parse_args(argv)
    least = {"max_prompt_tokens": 1, "max_thought_tokens": 0, "max_new_tokens": 1, "batch_size": 1}
    for name, low in least.items():
        if getattr(args, name) < low:
            parser.error(f"--{name} {getattr(args, name)}: must be at least {low}")
    check_memory_options(parser, args)
    if not 0 <= args.port < 65536:
        parser.error(f"--port {args.port}: must be from 0 to 65535")
    if args.fidelity == "paper" and args.mode != "free":
        parser.error("--fidelity paper goes with --mode free")
    if not Path(args.model).is_dir():
        parser.error(f"--model {args.model}: no such folder")
    return args


def make_server(args: argparse.Namespace) -> JudgeServer:
    """The server, listening, with the judge on all devices. Raises `UserError` or `OSError`."""
    import jax.numpy as jnp

    from perception_r1_jax.judge.on_mesh import load_judge
    from perception_r1_jax.judge.server import JudgeServer
    from perception_r1_jax.judge.service import JudgeService

    judge = load_judge(
        args.model,
        tokenizer=args.tokenizer,
        prompt=args.prompt,
        mode=args.mode,
        max_prompt_tokens=args.max_prompt_tokens,
        max_thought_tokens=args.max_thought_tokens,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        dtype=jnp.dtype(args.dtype),
        weights_memory=args.weights_memory,
        cache_memory=args.cache_memory,
        weights_int8=args.weights_int8,
        fidelity=args.fidelity,
    )
    service = JudgeService(judge, args.name or Path(args.model).resolve().name)
    try:
        return JudgeServer(service, args.host, args.port)
    except (OSError, OverflowError) as error:
        service.close()
        raise UserError(f"--host {args.host} --port {args.port}: cannot listen there ({error})") from error


def serve(server: JudgeServer) -> None:
    """Serves until a signal comes; a second one has its usual effect."""
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, _: object) -> None:
        print(
            f"{signal.Signals(number).name}: answering what has been asked; once more to end at once", file=sys.stderr
        )
        for each, handler in usual.items():
            signal.signal(each, handler)
        threading.Thread(target=server.shutdown).start()  # it waits for the loop that this handler interrupts

    for number in usual:
        signal.signal(number, stop)
    server.serve_forever()
    server.finish()


def main(argv: list[str] | None = None) -> None:
    """Reads the command line and serves; exits with status 1 and a message where it cannot."""
    args = parse_arguments(argv)
    try:
        server = make_server(args)
    except (OSError, UserError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"serving {server.service.name} at http://{args.host}:{server.server_port}/v1", flush=True)
    serve(server)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
