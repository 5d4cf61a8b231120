"""The format reward: one think block, then one answer block that holds a filled box."""

from __future__ import annotations

OPENING = "<think>\n"
BOUNDARY = "\n</think>\n<answer>\n"
CLOSING = "\n</answer>"
BOX = r"\boxed{"


def format_reward(response: str) -> float:
    r"""1.0 where the whole response has the form, else 0.0 (Perception-R1, section 4).

    The form is the regular expression `<think>\n.*\n</think>\n<answer>\n.*\\boxed\{.+\}.*\n</answer>`,
    matched from the first character to the last with DOTALL. It is searched for by hand, in time linear in
    the response: three wild cards in a row backtrack for hours over an adversarial text.
    """
    if not (response.startswith(OPENING) and response.endswith(CLOSING)):
        return 0.0
    # The first boundary leaves the longest answer, so where any boundary would do, the first one does.
    boundary = response.find(BOUNDARY, len(OPENING))
    if boundary < 0:
        return 0.0
    return float(_has_filled_box(response, boundary + len(BOUNDARY), len(response) - len(CLOSING)))


def _has_filled_box(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] holds a box with one or more characters before some closing brace."""
    box = text.find(BOX, start, end)
    return box >= 0 and text.rfind("}", box + len(BOX) + 1, end) >= 0
