"""Texts made safe to stand inside the judge's prompt: they cannot close, fake or extend its markup.

Nothing is removed. Each character that would do harm is replaced by a visible one that cannot, so the judge still
reads what was written, and a text without markup (any ordinary mathematics) stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NEW_LINE = re.compile(r"\r\n?")
# All controls but tab and newline, and lone surrogates, which no tokenizer can encode.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# <info1>, </info1>, also with a few spaces or capitals, and chat templates' special tokens such as <|im_end|>. The
# bounds keep the search linear.
_MARKUP = re.compile(r"<(?=\s{0,4}/?\s{0,4}info\s{0,4}[\d>]|\|\w{1,64}\|>)", re.IGNORECASE)


def sanitise(text: str, headings: Sequence[str] = ()) -> str:
    """The text with its markup defused; sanitising twice changes nothing more.

    Args:
        text: a response or an annotation, of any content.
        headings: the prompt's section headings without their colons, as `JudgePrompt.headings` gives them.

    Line ends become newlines, controls become U+FFFD, the "<" of markup becomes a single guillemet, and the colon
    after a heading's words, in any case and anywhere, becomes a dash.
    """
    text = _CONTROL.sub("\ufffd", _NEW_LINE.sub("\n", text))
    text = _MARKUP.sub("\u2039", text)
    if not headings:
        return text
    words = "|".join(r"\s+".join(map(re.escape, heading.split())) for heading in headings)
    return re.sub(rf"({words})\s*[:：]", r"\1 -", text, flags=re.IGNORECASE)
