"""The authors' `visual_key_info`: the annotations of a problem as one string of `<infoK>...</infoK>` items."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ITEM = re.compile(r"\s*<info(\d+)>(.*?)</info\1>\s*", re.DOTALL)


def parse_key_info(text: str | None) -> tuple[str, ...]:
    """The items in order, white space at their ends removed; none for an empty string or a null.

    Raises:
        ValueError: the text is not `<info1>...</info1><info2>...</info2>...`, numbered from 1 and each with
            something in it. The message shows the place where it goes wrong.
    """
    items, position = [], 0
    text = text or ""
    while text[position:].strip():
        item, expected = _ITEM.match(text, position), len(items) + 1
        if item is None or item[1] != str(expected) or not item[2].strip():
            raise ValueError(f"expected <info{expected}>...</info{expected}> at {text[position : position + 60]!r}")
        items.append(item[2].strip())
        position = item.end()
    return tuple(items)


def format_key_info(annotations: Sequence[str]) -> str:
    """M annotations as one string, an item to a line: what `parse_key_info` reads."""
    return "\n".join(f"<info{k}>{item}</info{k}>" for k, item in enumerate(annotations, start=1))
