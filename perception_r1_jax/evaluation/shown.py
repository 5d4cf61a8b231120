"""What the console shows of an evaluation, and of two."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

from rich.table import Table

from perception_r1_jax.evaluation.compare import RATES, result_fields
from perception_r1_jax.evaluation.files import Evaluated
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.rewards.tally import name_first


def describe(evaluated: Evaluated) -> str:
    """The rates in one line, and a line for whatever a reader of them must know."""
    summary = evaluated.summary
    rates = [f"{name} {percent(rate)}" for name in RATES if (rate := getattr(summary, name)) is not None]
    lines = [f"{summary.problems} problems in {summary.seconds:.0f} s: {', '.join(rates)}"]
    for what, cut in (("responses", summary.cut), ("answers to probes", summary.probe_cut)):
        lines += [f"  cut at the limit of tokens, and graded so: {cut} of {summary.problems} {what}"] if cut else []
    return "\n".join([*lines, *_describe_failures(evaluated.items)])


def _describe_failures(items: Sequence[Item]) -> Iterator[str]:
    """A line for each field that has no data somewhere: how often, where first, and why there."""
    failed: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for item in items:
        for field, reason in item.failures.items():
            failed[field].append((item.problem_id, reason))
    for field, places in failed.items():
        ids, (reason, *_) = zip(*places)
        share = f"{len(places)} of {len(items)} problems"
        yield f"  no {field}, and left out of its rate: {share} ({name_first(ids)}), the first for {reason}"


def comparison_table(before: Evaluated, after: Evaluated) -> Table:
    """The rates before and after, their change with its 95% interval, McNemar's exact test, and the needed facts."""
    fields = result_fields(before, after)
    table = Table(caption=_facts_caption(fields["facts"]), caption_justify="left")
    for column in ("", "before", "after", "change (95%)", "gained", "lost", "p"):
        table.add_column(column, justify="right" if column else "left")
    for name in RATES:
        if fields[f"{name}_before"] is not None and fields[f"{name}_after"] is not None:
            rates = (percent(fields[f"{name}_{side}"]) for side in ("before", "after"))
            table.add_row(name, *rates, *_test_cells(fields.get(f"change_{name}"), fields.get(f"mcnemar_{name}")))
    return table


def _test_cells(change: dict[str, float] | None, test: dict[str, float] | None) -> tuple[str, ...]:
    if change is None or test is None:
        return ()
    value, low, high = (f"{100 * change[name]:+.1f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})", str(test["gained"]), str(test["lost"]), f"{test['p']:.2g}"


def _facts_caption(facts: dict[str, int] | None) -> str | None:
    """The changes of `fact_changes` in words."""
    if facts is None:
        return None
    changes = [f"{name.replace('_', ' ')} {count}" for name, count in facts.items() if name != "needed"]
    return f"Of {facts['needed']} facts that the solutions need: {', '.join(changes)}."


def percent(share: float) -> str:
    """A share with one decimal place.

    >>> percent(0.6254)
    '62.5%'
    """
    return f"{100 * share:.1f}%"
