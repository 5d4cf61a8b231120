"""`table.md`: what the records say, in tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from perception_r1_jax.claim.comparison import Difference, Pair, after, compare, measured, pair_seeds
from perception_r1_jax.claim.families import by_family, by_wrong_fact
from perception_r1_jax.claim.markdown import NOTHING, percent, rows_to_markdown
from perception_r1_jax.claim.record import Record, read_records
from perception_r1_jax.claim.variants import FULL, PLAIN, VARIANTS, changed_fields
from perception_r1_jax.evaluation.summary import FIELDS
from perception_r1_jax.report import wording
from perception_r1_jax.report.agreement import THRESHOLD
from perception_r1_jax.report.meaning import SIGNIFICANT


def write_table(out: Path) -> str:
    """Reads the records of a folder and writes `table.md` beside them; returns its text.

    Raises:
        UserError: there are no records, or they are not of one ablation.
    """
    records = read_records(out)
    sections = (_head, _claim, _runs, _other_variants, _seeing, _stating, by_family, by_wrong_fact, _judge)
    text = "\n\n".join(part for section in sections if (part := section(records))) + "\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    return text


def _head(records: Sequence[Record]) -> str:
    first, runs = records[0], wording.counted(len(records), "run")
    seconds = [record.result["seconds"] for record in records]
    memory = max(record.result["peak_rss_bytes"] for record in records)
    made = sorted({_made_with(record) for record in records})
    return "\n".join([
        "# The ablation in numbers",
        "",
        "Made by `python scripts/claim.py --out DIR --table_only` from the records beside it.",
        "",
        f"{runs} of {first.config['steps']} steps; each evaluated on {first.problems['count']:,} problems of the split "
        f"`{first.config['evaluation.split']}`, before and after. A run took "
        f"{wording.duration(statistics.median(seconds))} (median; {wording.duration(min(seconds))} to "
        f"{wording.duration(max(seconds))}) and at most {memory / 1e9:.1f} GB. Made with {'; '.join(made)}.",
        "",
        _start(records),
        "",
        rows_to_markdown(("variant", "what it is", "seeds"), [_variant_row(name, records) for name in VARIANTS], 3),
    ])  # fmt: skip


def _start(records: Sequence[Record]) -> str:
    """Whether the policy before training was the same; between kinds of machines rounding may change a response."""
    odd = [f"`{record.name}`" for record in records if record.before != records[0].before]
    if odd:
        return f"Before the first step, problems came out otherwise in {', '.join(odd)} than in `{records[0].name}`."
    return "Before the first step, every problem came out alike in all runs."


def _made_with(record: Record) -> str:
    run = record.run
    commit = run["commit"][:10] if run["commit"] else "unknown"
    return f"Python {run['versions']['python']}, jax {run['versions']['jax']}, commit {commit}"


def _variant_row(name: str, records: Sequence[Record]) -> tuple[str, str, str]:
    seeds = ", ".join(str(record.seed) for record in _of(name, records))
    if is_full(name, records):
        return f"`{name}`", f"{VARIANTS[name].about}: this is `{FULL}`, whose config has these values", f"as `{FULL}`"
    return f"`{name}`", VARIANTS[name].about, seeds or "no run yet"


def is_full(name: str, records: Sequence[Record]) -> bool:
    """Whether a variant sets nothing otherwise than the full recipe does."""
    full = next((record.config for record in _of(FULL, records)), None)
    return name != FULL and full is not None and not changed_fields(name, full)


def _claim(records: Sequence[Record]) -> str:
    pairs = pair_seeds(records, FULL, PLAIN)
    if not pairs:
        return ""
    header = (
        "after training",
        "with",
        "without",
        "difference",
        "95% over seeds",
        "p",
        "95% over problems",
        "each seed",
    )
    seeds = ", ".join(str(ours.seed) for ours, _ in pairs)
    return "\n".join([
        f"## With and without the visual reward, seeds {seeds}",
        "",
        rows_to_markdown(header, [_difference_row(compare(pairs, rate)) for rate in measured(records)]),
        "",
        "Differences are in percentage points, of runs of one seed. \"Over seeds\" is Student's t interval and test of "
        "the mean difference: how far it may lie from that of other seeds. \"Over problems\" is a bootstrap of the "
        "problems, the same ones for all runs: how far it may lie from that of other problems.",
    ])  # fmt: skip


def _difference_row(difference: Difference) -> tuple[str, ...]:
    return (
        difference.measure,
        percent(difference.ours),
        percent(difference.theirs),
        f"**{wording.points(difference.mean)}**",
        NOTHING if difference.seed_interval is None else wording.interval(difference.seed_interval),
        NOTHING if difference.p is None else wording.p_value(difference.p),
        wording.interval(difference.problem_interval),
        ", ".join(wording.points(value) for value in difference.values),
    )


def _runs(records: Sequence[Record]) -> str:
    header = ("", "before", "after", "change", "95%", "gained", "lost", "p")
    tables = (
        rows_to_markdown((field, *header[1:]), [_run_row(record, field) for record in records]) for field in FIELDS
    )
    precision = [(f"`{record.name}`", *_before_after(record, "precision")) for record in records]
    counts = [
        f"Perception rises with p < {SIGNIFICANT} in {count_significant(records, name)} seeds of `{name}`."
        for name in (FULL, PLAIN)
        if _of(name, records)
    ]
    return "\n\n".join([
        "## Each run, before and after",
        " ".join([*counts, "p is that of McNemar's exact two-sided test; change and its interval are in points."]),
        *tables,
        rows_to_markdown(("precision", "before", "after"), precision),
    ])  # fmt: skip


def count_significant(records: Sequence[Record], variant: str) -> str:
    """In how many seeds of a variant perception rises with p < `SIGNIFICANT`, such as "4 of 5"."""
    tests = [record.result["mcnemar_perception"] for record in _of(variant, records)]
    risen = [test for test in tests if test["gained"] > test["lost"] and test["p"] < SIGNIFICANT]
    return f"{len(risen)} of {len(tests)}"


def _run_row(record: Record, field: str) -> tuple[str, ...]:
    change, test = record.result[f"change_{field}"], record.result[f"mcnemar_{field}"]
    return (
        f"`{record.name}`",
        *_before_after(record, field),
        wording.points(change["value"]),
        wording.interval((change["low"], change["high"])),
        str(test["gained"]),
        str(test["lost"]),
        wording.p_value(test["p"]),
    )


def _before_after(record: Record, rate: str) -> tuple[str, str]:
    return percent(record.result[f"{rate}_before"]), percent(record.result[f"{rate}_after"])


def _other_variants(records: Sequence[Record]) -> str:
    paired = {name: pair_seeds(records, name, FULL) for name in VARIANTS if name not in (FULL, PLAIN)}
    rates = measured(records)
    rows = [_variant_against_full(name, pairs, rates) for name, pairs in paired.items() if pairs]
    if not rows:
        return ""
    return "\n".join([
        f"## Other variants beside the same seeds of `{FULL}`",
        "",
        rows_to_markdown(("variant", "seeds", *rates), rows),
        "",
        "Means over seeds after training, and their difference in points from the full recipe's.",
    ])  # fmt: skip


def _variant_against_full(name: str, pairs: Sequence[Pair], rates: Sequence[str]) -> tuple[str, ...]:
    seeds = ", ".join(str(ours.seed) for ours, _ in pairs)
    return (f"`{name}`", seeds, *(_beside(pairs, rate) for rate in rates))


def _beside(pairs: Sequence[Pair], rate: str) -> str:
    ours, theirs = (statistics.fmean(after(pair[side], rate) for pair in pairs) for side in (0, 1))
    return f"{percent(ours)} ({wording.points(ours - theirs)})"


def _seeing(records: Sequence[Record]) -> str:
    header = (
        "variant",
        "stated rightly",
        "misread",
        "not stated",
        "newly stated : no longer",
        "newly right : no longer",
    )
    names = [name for name in VARIANTS if _of(name, records)]
    return "\n".join([
        "## Seeing against stating: the facts that solutions need",
        "",
        rows_to_markdown(header, [_facts_row(name, _of(name, records)) for name in names]),
        "",
        "Shares of needed facts, before → after, and needed facts gained and lost between the two, a run. A fact is "
        "misread that is denied, whose name gets another number, or whose number another name (a relation: other "
        "letters); newly right was misread before, and of what is newly stated nothing was stated. Means over seeds.",
    ])  # fmt: skip


def _facts_row(name: str, records: Sequence[Record]) -> tuple[str, ...]:
    before, after = (_mean([getattr(record, when).states() for record in records]) for when in ("before", "after"))
    changes = _mean([record.result["facts"] for record in records])
    return (
        f"`{name}`",
        *(f"{percent(before[state])} → {percent(after[state])}" for state in before),
        f"{changes['newly_stated']:.0f} : {changes['no_longer_stated']:.0f}",
        f"{changes['newly_right']:.0f} : {changes['no_longer_right']:.0f}",
    )


def _stating(records: Sequence[Record]) -> str:
    needed = records[0].before.needed
    header = ("run", "facts stated", "a needed fact", "responses that look first")
    return "\n".join([
        "## How much is stated, and what is done first",
        "",
        rows_to_markdown(header, [_stating_row(record, needed) for record in records]),
        "",
        f"Before → after. Facts stated are all, right and wrong; the solutions need {needed}. A response that looks "
        "first goes over the picture from left to right before it thinks.",
    ])  # fmt: skip


def _stating_row(record: Record, needed: int) -> tuple[str, ...]:
    sides = (record.before, record.after)
    return (
        f"`{record.name}`",
        " → ".join(f"{side.stated:,}" for side in sides),
        " → ".join(f"{side.stated / needed:.2f}" for side in sides),
        " → ".join(str(side.looks_first.count("1")) for side in sides),
    )


def _judge(records: Sequence[Record]) -> str:
    judged = [record for record in records if record.tenths]
    if not judged:
        return ""
    parts = max(len(record.tenths) for record in judged)
    rows = [_agreement_row(record, parts) for record in judged]
    return "\n".join([
        "## Judge against checker",
        "",
        rows_to_markdown(("run", "least", *(f"{part + 1}" for part in range(parts))), rows),
        "",
        "Pearson's correlation, over the responses of each tenth of the run, of the share of annotations that the "
        f"judge found reflected and the share that the checker did; bold below {THRESHOLD}. Verdicts are taken as they "
        "were used, so those of `flipped_20` are the flipped ones.",
    ])  # fmt: skip


def _agreement_row(record: Record, parts: int) -> list[str]:
    values = [tenth.pearson for tenth in record.tenths]
    known = [value for value in values if value is not None]
    cells = [_correlation(value) for value in [min(known, default=None), *values]]
    return [f"`{record.name}`", *cells, *[NOTHING] * (parts - len(values))]


def _correlation(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value >= THRESHOLD else f"**{value:.3f}**"


def _of(name: str, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.variant == name]


def _mean(dicts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(values[key] for values in dicts) for key in dicts[0]}
