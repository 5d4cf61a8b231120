r"""What a worker process does with one item: find the answer in a response and compare it with the truth.

`math_verify` reads both sides. Its own time-outs are off: they are signals, which work in one thread only
and turn a hanging comparison into a wrong answer. The pool's deadline rules instead.
"""

from __future__ import annotations

import re
from typing import NamedTuple

OK = "ok"
TIMED_OUT = "timed_out"
WORKER_DIED = "worker_died"
UNREADABLE_TRUTH = "unreadable_truth"


class Accuracy(NamedTuple):
    """An accuracy and how it came about.

    Attributes:
        value: 1.0 or 0.0; None where the item failed and so has no accuracy.
        status: "ok", or the failure: "timed_out", "worker_died", "unreadable_truth" (an empty ground truth,
            or one in which math_verify finds nothing to compare with).
    """

    value: float | None
    status: str


SELF_TEST = (
    (r"\boxed{90^\circ}", "90", 1.0),
    (r"\boxed{54 \text{ units}}", "54", 1.0),
    (r"\boxed{x=5}", "5", 1.0),
    (r"<answer>\boxed{\frac{1}{2}}</answer>", "0.5", 1.0),
    (r"\boxed{46.49}", "46.5", 0.0),
    (r"<answer>\boxed{-3}</answer>", "3", 0.0),
    ("no answer at all", "3", 0.0),
)
"""(response, truth, accuracy) that hold under either fidelity; a worker that gets one wrong must not score."""


def grade(response: str, truth: str, fidelity: str) -> Accuracy:
    """Compares with no deadline of its own: call it in a process that may be killed.

    A response in which math_verify finds nothing, or nothing it can compare, is wrong (0.0).
    """
    return _grade_as_paper(response, truth) if fidelity == "paper" else _grade(response, truth)


def _grade(response: str, truth: str) -> Accuracy:
    gold = _parse(delimit(truth))
    if not gold:
        return Accuracy(None, UNREADABLE_TRUTH)
    # math_verify reads `90^\circ` in a box as 90, but not the degree sign.
    answer = answer_text(response).replace("°", r"^\circ")
    return Accuracy(float(_verify(gold, _parse(answer))), OK)


def _grade_as_paper(response: str, truth: str) -> Accuracy:
    """The authors' released scorer: no DOTALL, so a block over several lines is not found; errors are 0."""
    block = re.search(r"<answer>(.*?)</answer>", response)
    answer = (block.group(1) if block else response).strip()
    try:
        return Accuracy(float(_verify(_parse(truth.strip()), _parse(answer))), OK)
    except Exception:
        return Accuracy(0.0, OK)


def answer_text(response: str) -> str:
    """The text of the last answer block, which may span lines; the whole response where there is none."""
    opening, closing = "<answer>", "</answer>"
    start = response.rfind(opening, 0, max(0, response.rfind(closing)))
    if start < 0:
        return response
    start += len(opening)
    return response[start : response.index(closing, start)]


def delimit(truth: str) -> str:
    r"""The ground truth as LaTeX between dollar signs, unless it is delimited already.

    Bare LaTeX is read as plain text: math_verify takes `8\sqrt{3}` for 8.
    """
    truth = truth.strip()
    delimited = re.search(r"(?<!\\)\$|\\\(|\\\[", truth)
    return truth if delimited or not truth else f"${truth}$"


def _parse(text: str) -> list:
    from math_verify import parse

    return parse(text, parsing_timeout=None)


def _verify(gold: list, answer: list) -> bool:
    from math_verify import verify

    return verify(gold, answer, timeout_seconds=None)
