"""Scores responses from a file with the rewards of training, one JSON object per line in and out.

    python scripts/score.py --input responses.jsonl --output scores.jsonl [--judge none|DIR|URL]

A line needs `response` and `answer` (texts); `annotations` (a list of texts) and `judge_output` (a judge's answer
about them, recorded earlier) are optional. The output holds every line in its order, with all its fields and

    format, accuracy, repetition, visual, total   numbers, or null where there is no value
    judge_status                                  "ok", "none" (not asked), or why the judgement failed

No failure is a zero: `accuracy` is null where the comparison ran out of time or the answer field is unreadable,
`visual` where the judgement failed, and `total` is then null too. Without annotations `visual` is 0. With
annotations but neither `judge_output` nor a judge it is null, and `total` is the sum of the other terms.
A line that cannot be read becomes {"line": its number, "error": why}. Until the end the lines stand in
OUTPUT.partial, so that an OUTPUT is always whole.

Exit code: 0 if every line could be read, 1 if some could not or it was stopped, 2 for a wrong command line or judge.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.progress import Progress

from perception_r1_jax.command_line import CACHE_MEMORY, WEIGHTS_MEMORY
from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.endpoint import is_url
from perception_r1_jax.judge.verdicts import Judgement, read_answer
from perception_r1_jax.records import Problem, Scores
from perception_r1_jax.rewards.accuracy import DEADLINE_SECONDS, FIDELITIES, AccuracyPool
from perception_r1_jax.rewards.score import WEIGHTS, RewardSettings, score_responses, unjudged

if TYPE_CHECKING:
    from perception_r1_jax.judge.call import AnyJudge

LINES_AT_ONCE = 256
CACHE_SIZE = 65_536
"""Judgements kept, so that lines with the same annotations and response are judged once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Scores the file; returns the exit code. A message and status 1 where it is stopped, or cannot be written."""
    args = _parse_arguments(arguments)
    partial = args.output.with_name(args.output.name + ".partial")
    try:
        counts = score_file(args, _load_judge(args), partial)
    except (OSError, UserError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; {args.output} is as it was.") from None
    os.replace(partial, args.output)
    print(f"{args.output}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())), file=sys.stderr)
    return 1 if counts["bad lines"] else 0


def score_file(
    args: argparse.Namespace, judge: Callable[[list[Problem]], list[Judgement]] | None, output: Path
) -> collections.Counter[str]:
    """Writes the scores of the input's lines; returns what became of them."""
    counts: collections.Counter[str] = collections.Counter()
    with (
        AccuracyPool(args.workers, args.deadline_seconds, args.fidelity) as pool,
        args.input.open("rb") as source,
        output.open("w", encoding="utf-8") as target,
        Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress,
    ):
        task = progress.add_task("scoring", total=args.input.stat().st_size)
        lines = ((number, line) for number, line in enumerate(source, 1) if line.strip())
        while batch := list(itertools.islice(lines, LINES_AT_ONCE)):
            for row in score_lines(batch, judge, pool, args.fidelity, counts):
                target.write(json.dumps(row) + "\n")
            progress.update(task, completed=source.tell())
    return counts


def score_lines(
    lines: Sequence[tuple[int, bytes]],
    judge: Callable[[list[Problem]], list[Judgement]] | None,
    pool: AccuracyPool,
    fidelity: str,
    counts: collections.Counter[str],
) -> Iterator[dict[str, Any]]:
    """The output rows of some (number, line), in their order; adds to `counts` what became of them."""
    read = [read_line(number, line) for number, line in lines]
    problems = [problem for problem in read if isinstance(problem, Problem)]
    scored = iter(_score(problems, judge, pool, fidelity, counts) if problems else [])
    counts["lines"] += len(read)
    counts["bad lines"] += len(read) - len(problems)
    for item in read:
        if isinstance(item, dict):
            print(f"line {item['line']}: {item['error']}", file=sys.stderr)
        yield item if isinstance(item, dict) else next(scored)


def read_line(number: int, line: bytes) -> Problem | dict[str, Any]:
    """The line as a problem whose row holds the response, or {"line", "error"}."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
        _check(row)
    except (ValueError, RecursionError) as error:
        return {"line": number, "error": str(error)}
    return Problem(f"line {number}", "", (), row["answer"], tuple(row.get("annotations") or ()), row)


def _check(row: object) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not a JSON object")
    for field in ("response", "answer"):
        if not isinstance(row.get(field), str):
            found = f"is {row[field]!r:.80}, not a text" if field in row else "is missing"
            raise ValueError(f"the field {field!r} {found}")
    annotations = row.get("annotations") or []
    if not (isinstance(annotations, list) and all(isinstance(fact, str) for fact in annotations)):
        raise ValueError(f"the field 'annotations' is {annotations!r:.80}, not a list of texts")
    if row.get("judge_output") is not None and not annotations:
        raise ValueError("the field 'judge_output' needs the 'annotations' that were judged")


def _score(problems, judge, pool: AccuracyPool, fidelity: str, counts) -> list[dict[str, Any]]:
    texts = [[problem.row["response"]] for problem in problems]
    judgements = [[judgement] for judgement in _judgements(problems, judge, fidelity)]
    scores = score_responses(problems, texts, judgements, pool, RewardSettings(fidelity=fidelity))
    counts.update(scores.counts)
    return [_output_row(problem, index, scores) for index, problem in enumerate(problems)]


def _judgements(problems: Sequence[Problem], judge, fidelity: str) -> list[Judgement]:
    """Recorded judge outputs parsed; the judge asked about the others."""
    judgements = [_recorded(problem, fidelity) for problem in problems]
    open_indices = [index for index, problem in enumerate(problems) if problem.row.get("judge_output") is None]
    if judge and open_indices:
        for index, judgement in zip(open_indices, judge([problems[index] for index in open_indices])):
            judgements[index] = judgement
    return judgements


def _recorded(problem: Problem, fidelity: str) -> Judgement:
    text = problem.row.get("judge_output")
    return unjudged(problem) if text is None else read_answer(text, len(problem.annotations), fidelity)


def _output_row(problem: Problem, index: int, scores: Scores) -> dict[str, Any]:
    values = {name: float(scores.terms[name][index, 0]) for name in WEIGHTS}
    if not problem.annotations:
        values["visual"] = 0.0
    values["total"] = float(scores.total[index, 0]) if scores.valid[index, 0] else math.nan
    numbers = {name: None if math.isnan(value) else round(value, 6) for name, value in values.items()}
    return {**problem.row, **numbers, "judge_status": scores.judge_status[index][0]}


def _load_judge(args: argparse.Namespace) -> Callable[[list[Problem]], list[Judgement]] | None:
    """Asks the model in a folder, or at an address, about problems."""
    if args.judge == "none":
        return None
    from perception_r1_jax.judge.cache import CachedJudge
    from perception_r1_jax.judge.prompts import JudgeRequest

    try:
        judge = CachedJudge(_make_judge(args), CACHE_SIZE)
    except (OSError, UserError) as error:
        print(f"--judge {args.judge}: {error}", file=sys.stderr)
        sys.exit(2)
    return lambda problems: judge.judge([JudgeRequest(p.annotations, p.row["response"]) for p in problems])


def _make_judge(args: argparse.Namespace) -> AnyJudge:
    """Imports are here, for these libraries take seconds to load."""
    common = {"prompt": args.judge_prompt, "fidelity": args.fidelity}
    if is_url(args.judge):
        from perception_r1_jax.judge.remote import connect_judge

        return connect_judge(args.judge, model=args.judge_model, **common)
    from perception_r1_jax.judge.on_mesh import load_judge

    return load_judge(
        args.judge,
        mode=args.judge_mode,
        max_thought_tokens=args.judge_max_thought_tokens,
        weights_memory=args.judge_weights_memory,
        cache_memory=CACHE_MEMORY,
        **common,
    )


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="JSON lines with response and answer")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to write; an old file is replaced")
    parser.add_argument(
        "--judge",
        default="none",
        help="'none' (default), the folder of a judge model, or the address of an endpoint (docs/judge.md)",
    )
    parser.add_argument("--judge_model", default="", help="at an endpoint with several models, the name of one")
    parser.add_argument("--judge_prompt", default="", metavar="FILE", help="JSON file of another wording")
    parser.add_argument(
        "--judge_mode",
        choices=("constrained", "free"),
        help="of a judge in a folder: 'constrained' (default) reads only the digits of the known answer form, 'free' "
        "(default with --fidelity paper) lets the model write",
    )
    parser.add_argument(
        "--judge_max_thought_tokens",
        type=int,
        default=0,
        metavar="N",
        help="tokens of thoughts before a constrained answer, up to </think> (default 0: none)",
    )
    parser.add_argument(
        "--judge_weights_memory",
        type=float,
        default=WEIGHTS_MEMORY,
        metavar="SHARE",
        help="of a judge in a folder: share of a device's memory for its weights; larger ones are split "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--fidelity", choices=FIDELITIES, default="default", help="'paper': as the authors' code scores"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that compare answers (default: 2)")
    parser.add_argument(
        "--deadline_seconds", type=float, default=DEADLINE_SECONDS, help="for one comparison (default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    if not args.input.is_file():
        parser.error(f"--input {args.input}: no such file")
    if args.output.exists() and args.output.samefile(args.input):
        parser.error(f"--output {args.output} is the input file; write to another one")
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"--output {args.output}: name a file in a folder that exists")
    if args.judge != "none" and not is_url(args.judge) and not Path(args.judge).is_dir():
        parser.error(f"--judge {args.judge}: no such folder; use 'none' to score without a judge")
    args.judge_mode = args.judge_mode or ("free" if args.fidelity == "paper" else "constrained")
    if args.fidelity == "paper" and args.judge_mode != "free":
        parser.error("--fidelity paper goes with --judge_mode free")
    if args.judge_max_thought_tokens < 0:
        parser.error(f"--judge_max_thought_tokens {args.judge_max_thought_tokens}: must be at least 0")
    if not 0 < args.judge_weights_memory <= 1 - CACHE_MEMORY:
        most = f"at most {1 - CACHE_MEMORY}: keys and values take the rest"
        parser.error(f"--judge_weights_memory {args.judge_weights_memory}: must be above 0 and {most}")
    if args.workers < 1 or not args.deadline_seconds > 0:
        parser.error("--workers and --deadline_seconds must be positive")
    return args


if __name__ == "__main__":
    sys.exit(main())
