"""Stop strings: where a response ends whose text, not one of its tokens, says that it is over. On the host."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are no character, or the beginning of one."""

STOP_STRINGS = "a tuple of texts, none of them empty or with U+FFFD (which stands for an incomplete character)"


def are_stop_strings(value: object) -> bool:
    """Whether this is what `STOP_STRINGS` says."""
    return isinstance(value, tuple) and all(isinstance(x, str) and x and INCOMPLETE not in x for x in value)


def stop_length(
    decode: Callable[[Sequence[int] | np.ndarray], str],
    tokens: Sequence[int] | np.ndarray,
    stop_strings: tuple[str, ...],
    start: int = 0,
) -> int | None:
    """How many tokens a response has when it ends: the least number whose text contains a stop string.

    The answer does not depend on how many tokens have come since. Text only grows with tokens, but for an incomplete
    character at its end, and no stop string has one: what contains a stop string goes on containing it, so that the
    least number is found by bisection.

    Args:
        decode: text of token ids. That of more tokens begins with that of fewer, up to an incomplete character. Tokens
            without text, as special ones are, may stand between.
        tokens: of the response so far.
        stop_strings: as `STOP_STRINGS` says.
        start: so many tokens contain no stop string, as an earlier call has said. Older text is not decoded again.

    Returns:
        The number, or None while no stop string is there.
    """
    if not stop_strings:
        return None
    begin = _context(decode, tokens, start, max(map(len, stop_strings)))

    def stops(length: int) -> bool:
        text = decode(tokens[begin:length])
        return any(string in text for string in stop_strings)

    if not stops(len(tokens)):
        return None
    return bisect.bisect_left(range(len(tokens)), True, lo=start, key=stops)


def _context(decode: Callable, tokens: Sequence[int] | np.ndarray, start: int, characters: int) -> int:
    """The number of a token from which to decode, so that so many whole characters come before token `start`.

    A token may have less than one character: special tokens have no text, and a character may take several tokens.
    """
    back = characters
    while back < start and len(decode(tokens[start - back : start]).strip(INCOMPLETE)) < characters:
        back *= 2
    return max(start - back, 0)
