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
# Characters that are seen as nothing at all, as Unicode lists them (Default_Ignorable_Code_Point), and space.
_UNSEEN = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    r"\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_BLANK = rf"[\s{_UNSEEN}]"
_GAP = _BLANK + "{0,4}"


def _unseen_between(word: str) -> str:
    """A pattern of the word, with a few unseen characters between any two of its letters."""
    return rf"[{_UNSEEN}]{{0,4}}".join(map(re.escape, word))


# <info1>, </info1>, also with a few blanks or capitals; and chat templates' special tokens, which a server behind HTTP
# would take at their word: <|im_end|> and the like, Llama's, Mistral's and Gemma's. Wide forms too, since some
# tokenizers make them narrow. The bounds keep the search linear.
_MARKUP = re.compile(
    rf"[<＜﹤](?={_GAP}/?{_GAP}{_unseen_between('info')}{_GAP}[\d>＞﹥]|[|｜][\w\u2581.\-]{{1,64}}[|｜]>|</?SYS>>"
    r"|/?(?:s|unk|pad|bos|eos|start_of_turn|end_of_turn|tool_call|tool_response)>"
    r"|(?:start_of_image|end_of_image|image_soft_token)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK|IMG|IMG_BREAK|IMG_END|gMASK)\])",
    re.IGNORECASE,
)
_HARMLESS = {"[": "\u2045"}  # a bracket with a quill; "<" in any width becomes a single guillemet
_COLONS = "[:：﹕︓∶꞉]"
_LINE_START = rf"^(?:[^\S\n]|[{_UNSEEN}*_#>])*"


def sanitise(text: str, headings: Sequence[str] = ()) -> str:
    """The text with its markup defused; sanitising twice changes nothing more.

    Args:
        text: a response or an annotation, of any content.
        headings: the prompt's section headings without their colons, as `JudgePrompt.headings` gives them.

    Line ends become newlines, controls become U+FFFD, the "<" of markup becomes a single guillemet, the "[" of a
    special token a bracket with a quill, and the colon after a heading's words (any case, bold too) a dash. The end of
    a longer word is no heading, and a single letter, which may name a point, only where a line begins with it.
    """
    text = _CONTROL.sub("\ufffd", _NEW_LINE.sub("\n", text))
    text = _MARKUP.sub(lambda match: _HARMLESS.get(match[0], "\u2039"), text)
    if not headings:
        return text
    words = "|".join(map(_heading, headings))
    return re.sub(rf"((?:{words})[*_]{{0,4}}){_BLANK}*{_COLONS}", r"\1 -", text, flags=re.IGNORECASE | re.MULTILINE)


def _heading(heading: str) -> str:
    """A pattern of the heading's words, where they can be one."""
    if len(heading) == 1:
        return rf"{_LINE_START}{re.escape(heading)}(?=[*_]{{0,4}}{_BLANK}*{_COLONS}(?:{_BLANK}|\Z))"
    words = f"{_BLANK}+".join(map(_unseen_between, heading.split()))
    return rf"(?<![^\W_]){words}" if heading[0].isalnum() else words
