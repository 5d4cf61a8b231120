"""A judge's answer read as verdicts: strictly by default, or the way the paper's authors read it.

The answer to a request with m annotations is `<info1>d</info1>` ... `<infom>d</infom>`, each d 0 or 1. A judge that
reasons, as Qwen3 does, writes its thoughts first and ends them with `</think>`; they are no part of the answer.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections import defaultdict
from collections.abc import Sequence

OK, NONE = "ok", "none"
EMPTY, UNREADABLE, REPEATED, EXTRA, MISSING = "empty", "unreadable", "repeated", "extra", "missing"
TOO_LONG, TOO_MANY, NOT_FINITE, BAD_PICTURE = "too_long", "too_many", "not_finite", "bad_picture"
UNFINISHED = "unfinished"

# Contents without "<" keep both scans linear: no stretch of text is looked at for two opening tags.
_ITEM = re.compile(r"<info([1-9][0-9]{0,5})>([^<]*)</info\1>")
_TAG = re.compile(r"<(/?)info([1-9][0-9]*)>")
THOUGHTS_END = "</think>"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a judge said of one response, or why it said nothing that counts.

    Attributes:
        verdicts: one number per annotation, 1.0 where the response shows it; None unless the status is "ok". Of a judge
            that sees a single one, 1.0 where the response is right about the pictures.
        expected: m, the verdicts that were asked for.
        parsed: verdicts that could be read, also in an answer that failed.
        status: "ok", "none" (no annotations or no picture, so nothing was asked), or the reason of the failure.
        probabilities: of a 1 at each digit, where the judge chose between the digits; else None. Judgements that say
            the same are equal, however sure they are.
        detail: what else is known of a failure, for the log.
    """

    verdicts: tuple[float, ...] | None
    expected: int
    parsed: int
    status: str
    probabilities: tuple[float, ...] | None = dataclasses.field(default=None, compare=False)
    detail: str = dataclasses.field(default="", compare=False)

    @property
    def failed(self) -> bool:
        """True where a judgement was wanted and there is none."""
        return self.status not in (OK, NONE)


def read_answer(text: object, expected: int, fidelity: str = "default") -> Judgement:
    """Reads the verdicts strictly, or with fidelity "paper" as the authors do, where no answer fails."""
    if fidelity != "paper":
        return parse_verdicts(text, expected)
    scores = parse_verdicts_paper(text)
    return Judgement(scores, expected, len(scores), OK)


def parse_verdicts(text: object, expected: int) -> Judgement:
    """Reads exactly the verdicts 1..expected, each once, each 0 or 1, in any order.

    White space around items and digits is allowed, and thoughts in front, up to the last `</think>`; other text is not:
    the form of the answer is known, and a verdict quoted in prose is not a verdict. Reasons of failure, the first that
    applies: "empty" (no text), "unreadable" (anything that is not a verdict: prose, broken markup, another value),
    "repeated" (a number twice), "extra" (a number above `expected`), "missing".

    Takes any object and never raises; time is linear in the text.
    """
    if expected < 1:
        return Judgement(None, expected, 0, NONE)
    items = []
    if isinstance(text, str):
        text = text.rpartition(THOUGHTS_END)[2]
        items = _ITEM.findall(text)
    verdicts = [(int(number), float(value)) for number, value in items if value.strip() in ("0", "1")]
    status = _status(text, [int(number) for number, _ in items], len(verdicts), expected)
    ordered = tuple(value for _, value in sorted(verdicts)) if status == OK else None
    return Judgement(ordered, expected, len(verdicts), status)


def _status(text: object, numbers: Sequence[int], readable: int, expected: int) -> str:
    if text is None or (isinstance(text, str) and not text.strip()):
        return EMPTY
    if not isinstance(text, str) or readable < len(numbers) or _ITEM.sub("", text).strip():
        return UNREADABLE
    if len(set(numbers)) < len(numbers):
        return REPEATED
    if max(numbers) > expected:
        return EXTRA
    return OK if len(numbers) == expected else MISSING


def parse_verdicts_paper(text: object) -> tuple[float, ...]:
    """Reads verdicts as the authors' released code does; their reward is sum / (count + 1e-6).

    For K = 1, 2, ... the last `<infoK>...</infoK>` with something in it, up to the first K without one. Each is
    clipped to [0, 1]; what is no number counts 0 and the text "nan" counts 1. The number of annotations plays
    no part. Their regular expression takes quadratic time, this does not.
    """
    opened, closed = defaultdict(list), defaultdict(list)
    for tag in _TAG.finditer(text if isinstance(text, str) else ""):
        positions, place = (closed, tag.start()) if tag[1] else (opened, tag.end())
        positions[tag[2]].append(place)
    scores = []
    while (span := _last_item(opened[str(len(scores) + 1)], closed[str(len(scores) + 1)])) is not None:
        scores.append(_lenient_score(text, *span))
    return tuple(scores)


def _last_item(opened: Sequence[int], closed: Sequence[int]) -> tuple[int, int] | None:
    """The content's bounds for the last opening tag that some closing tag follows after one character or more."""
    last = bisect.bisect_left(opened, closed[-1]) if closed else 0
    if last == 0:
        return None
    start = opened[last - 1]
    return start, closed[bisect.bisect_right(closed, start)]


def _lenient_score(text: str, start: int, end: int) -> float:
    if text.find("<", start, end) >= 0:  # no number, and nested items would be copied again and again
        return 0.0
    try:
        return float(max(0, min(1, float(text[start:end]))))  # in this order nan becomes 1, as it does for them
    except ValueError:
        return 0.0
