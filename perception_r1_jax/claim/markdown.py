"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from perception_r1_jax.report import wording

NOTHING = "–"


def rows_to_markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table; the first `left` columns are set left, the others right."""
    lines = [header, [*[":--"] * left, *["--:"] * (len(header) - left)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(value: float | None) -> str:
    """A share, or a dash where there is none."""
    return NOTHING if value is None else wording.percent(value)
