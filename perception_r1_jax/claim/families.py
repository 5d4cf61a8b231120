"""What becomes of each family of problems, and what is stated wrongly there, with and without the visual reward."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from perception_r1_jax.claim.markdown import percent, rows_to_markdown
from perception_r1_jax.claim.outcomes import Outcomes
from perception_r1_jax.claim.record import Record
from perception_r1_jax.claim.variants import FULL, PLAIN
from perception_r1_jax.data.geometry_world.facts import KINDS
from perception_r1_jax.report.wording import number

INITIALS = {kind[0]: kind for kind in KINDS}
"""The letters of `Outcomes.wrong_kinds`."""

ALL = "all"


class Seen(NamedTuple):
    """A response: whether it perceives the picture, and the kinds of facts that it states wrongly."""

    perceived: bool
    wrong: frozenset[str]


Families = Mapping[str, Sequence[Seen]]
"""The responses of an evaluation by their problem's family, the most frequent first, and last all of them."""


def group(families: Sequence[str], outcomes: Outcomes) -> Families:
    """The responses of an evaluation whose problems are of these families."""
    responses = [
        Seen(seen == "1", frozenset(INITIALS[letter] for letter in letters if letter in INITIALS))
        for seen, letters in zip(outcomes.perception, outcomes.wrong_kinds.split(" "), strict=True)
    ]
    groups: dict[str, list[Seen]] = {name: [] for name, _ in collections.Counter(families).most_common()}
    for name, response in zip(families, responses, strict=True):
        groups[name].append(response)
    return {**groups, ALL: responses}


def by_family(records: Sequence[Record]) -> str:
    """A section: how much of each family is perceived, and how often something is wrong; "" without both variants."""
    sides = _sides(records)
    if not sides:
        return ""
    header = ("family", "problems", *_columns("perceived", sides), *_columns("something wrong", sides))
    rows = [
        (
            name,
            str(len(responses)),
            *map(percent, _means(sides, name, lambda seen: np.mean([response.perceived for response in seen]))),
            *map(percent, _means(sides, name, lambda seen: np.mean([bool(response.wrong) for response in seen]))),
        )
        for name, responses in sides["before"][0].items()
    ]
    return "\n".join([
        "## Families of problems",
        "",
        rows_to_markdown(header, rows),
        "",
        "Shares of responses that perceive the picture, and that state something wrong, before training and after that "
        f"of `{FULL}` and of `{PLAIN}`. Means over seeds.",
    ])  # fmt: skip


def by_wrong_fact(records: Sequence[Record]) -> str:
    """A section: what it is that responses state wrongly; "" likewise."""
    sides = _sides(records)
    if not sides:
        return ""
    header = ("family", "wrong", *_columns("responses", sides), *_columns("nothing else wrong", sides))
    rows = [row for name in sides["before"][0] for kind in KINDS if (row := _wrong_fact_row(sides, name, kind))]
    return "\n".join([
        "## Wrong facts",
        "",
        rows_to_markdown(header, rows, 2),
        "",
        "Numbers of responses that state a fact of a kind wrongly, and of those among them in which facts of no other "
        "kind are wrong. Means over seeds.",
    ])  # fmt: skip


def _wrong_fact_row(sides: Mapping[str, Sequence[Families]], name: str, kind: str) -> tuple[str, ...]:
    """Empty where no response of the family states such a fact wrongly."""
    with_it = _means(sides, name, lambda seen: sum(kind in response.wrong for response in seen))
    alone = _means(sides, name, lambda seen: sum(response.wrong == {kind} for response in seen))
    return (name, kind, *map(number, (*with_it, *alone))) if any(with_it) else ()


def _sides(records: Sequence[Record]) -> dict[str, list[Families]]:
    """Evaluations before and after either variant, one of each run; none without runs of both."""
    runs = {name: [record for record in records if record.variant == name] for name in (FULL, PLAIN)}
    if not all(runs.values()):
        return {}
    after = {name: [group(record.families, record.after) for record in some] for name, some in runs.items()}
    return {"before": [group(record.families, record.before) for some in runs.values() for record in some], **after}


def _columns(what: str, sides: Mapping[str, Sequence[Families]]) -> list[str]:
    return [f"{what}: {side}" if side == "before" else f"`{side}`" for side in sides]


def _means(
    sides: Mapping[str, Sequence[Families]], name: str, measure: Callable[[Sequence[Seen]], float]
) -> list[float]:
    """Of each side the measure of a family's responses, the mean over its runs."""
    return [float(np.mean([measure(groups[name]) for groups in evaluations])) for evaluations in sides.values()]
