"""Says whether a policy became better or worse on the same problems, by McNemar's exact test.

    python scripts/mcnemar.py BEFORE.jsonl AFTER.jsonl [--field perception] [--json]

Both files have one JSON object a line, with a problem_id and the field: true or 1 where the policy was right, false
or 0 where it was wrong, null where that is not known. A training run leaves such files in WORKDIR/eval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.mcnemar import LEVEL
from perception_r1_jax.evaluation.pairs import Pairs, pair, read_verdicts


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, prints the comparison; exits with status 1 and a message where there can be none."""
    args = _parse_arguments(arguments)
    try:
        pairs = pair(read_verdicts(args.before, args.field), read_verdicts(args.after, args.field))
    except (OSError, UserError) as error:
        raise SystemExit(f"error: {error}") from error
    if pairs.count == 0:
        raise SystemExit(f"error: no problem has a value of {args.field!r} in both files.")
    print(json.dumps(numbers(pairs)) if args.json else explain(pairs, args.field))


def numbers(pairs: Pairs) -> dict[str, float]:
    """What `--json` prints."""
    low, high = pairs.interval
    return {
        "gained": pairs.gained,
        "lost": pairs.lost,
        "both": pairs.both,
        "neither": pairs.neither,
        "without_value": pairs.without_value,
        "before": pairs.before,
        "after": pairs.after,
        "difference": pairs.difference,
        "low": low,
        "high": high,
        "p": pairs.p,
    }


def explain(pairs: Pairs, field: str) -> str:
    """The comparison for a reader who has not met the test before."""
    low, high = (100 * edge for edge in pairs.interval)
    interval = f"{100 * LEVEL:.0f}% interval {low:+.1f} to {high:+.1f} (Tango's score interval)"
    left_out = f" ({pairs.without_value} more without a value are left out)" if pairs.without_value else ""
    return f"""\
{field} of {pairs.count} problems before and after{left_out}

  right before   {pairs.both + pairs.lost:6}   {100 * pairs.before:.1f}%
  right after    {pairs.both + pairs.gained:6}   {100 * pairs.after:.1f}%
  difference     {100 * pairs.difference:+.1f} points, {interval}

  gained         {pairs.gained:6}   wrong before, right after
  lost           {pairs.lost:6}   right before, wrong after
  both           {pairs.both:6}   right before and after
  neither        {pairs.neither:6}   wrong before and after

McNemar's exact test, two-sided: p = {pairs.p:.3g}
{_meaning(pairs)}"""


def _meaning(pairs: Pairs) -> str:
    if pairs.gained + pairs.lost == 0:
        return "No problem changed: nothing speaks for a difference."
    return (
        "If nothing but chance decided which way a problem changes, a split at least as uneven as "
        f"{pairs.gained} gained\nto {pairs.lost} lost would come about with this probability; "
        "below 0.05 is commonly taken for a difference."
    )


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="BEFORE.jsonl", help="results before")
    parser.add_argument("after", type=Path, metavar="AFTER.jsonl", help="results after, of the same problems")
    parser.add_argument("--field", default="perception", help="accuracy, perception or probe (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
