"""Writes the report of a run: one HTML file that needs no network and no other file.

    python scripts/report.py WORKDIR [--out FILE]

It shows what training changed, with tests and intervals, the curves of rewards and updates, the judge against the
world's checker, samples before and after, and what the run was. What is missing in WORKDIR is named in its place.

Exit code: 0, or 2 for a wrong command line or a folder that is no working directory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the report; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="working directory of a run")
    parser.add_argument("--out", type=Path, help="file to write (default: WORKDIR/report.html)")
    args = parser.parse_args(arguments)
    out = args.out or args.workdir / "report.html"
    if not out.absolute().parent.is_dir():
        parser.error(f"--out {out}: the folder {out.absolute().parent} does not exist")

    from perception_r1_jax.errors import UserError
    from perception_r1_jax.report import make_report

    try:
        page = make_report(args.workdir)
        # A model can write half of a surrogate pair, which no file in UTF-8 can hold.
        out.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
