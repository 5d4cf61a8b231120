"""The ablation: what does the visual reward add? Runs every variant and seed, and makes tables and charts of them.

    python scripts/claim.py --out runs/claim/records [--config configs/mini.py] [--runs runs/claim]
                            [--variants visual,accuracy_only] [--seeds 0,1] [--table_only | --grade_again]

Each run is one of scripts/train.py, in RUNS/VARIANT-SEED, and leaves its record, OUT/VARIANT-SEED.json. A run whose
record is there is not repeated; one that was stopped goes on from its checkpoint. Ctrl-C, or SIGTERM, saves the run
under way. Tables (OUT/table.md) and charts are made of all records in OUT; --table_only makes them and runs nothing.
--grade_again makes the records of finished runs anew from their working directories, as when the checker has changed.

Exit code: 0 when all is done, 1 for an error or where a signal stopped the runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from perception_r1_jax.claim.charts import write_charts
from perception_r1_jax.claim.plan import plan_runs
from perception_r1_jax.claim.running import record_again, run_all
from perception_r1_jax.claim.table import write_table
from perception_r1_jax.claim.variants import VARIANTS
from perception_r1_jax.errors import UserError
from perception_r1_jax.training.console import RunConsole


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is left, then writes tables and charts; returns the exit code."""
    args = _parse_arguments(arguments)
    console = RunConsole()
    try:
        if not args.table_only and not _run(args, console):
            return 1
        write_table(args.out)
        console.print(f"tables and charts: {args.out / 'table.md'}, {', '.join(map(str, write_charts(args.out)))}")
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped at once; the same command goes on from the latest checkpoint.") from None
    return 0


def _run(args: argparse.Namespace, console: Console) -> bool:
    runs = plan_runs(args.config, args.variants, args.seeds, args.runs, args.out)
    if args.grade_again:
        record_again(runs, console)
        return True
    script = Path(os.path.relpath(Path(__file__).with_name("train.py")))  # run.json keeps the command, as one types it
    return run_all(runs, script, console)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of records, tables and charts")
    parser.add_argument("--config", type=Path, default=Path("configs/mini.py"), help="of the full recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim"), help="folder of working directories")
    parser.add_argument("--variants", type=_variants, default=list(VARIANTS), help=f"some of {','.join(VARIANTS)}")
    parser.add_argument("--seeds", type=_seeds, help="for each variant; by default 0 to 4 for the first two, 0 and 1")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--table_only", action="store_true", help="make tables and charts of the records there are")
    instead.add_argument("--grade_again", action="store_true", help="grade and record finished runs again, train none")
    return parser.parse_args(arguments)


def _variants(words: str) -> list[str]:
    names = words.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    return names


def _seeds(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words!r} is no list of whole numbers such as 0,1") from None


if __name__ == "__main__":
    sys.exit(main())
