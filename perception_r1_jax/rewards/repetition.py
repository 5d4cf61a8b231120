"""The repetition penalty: how much of a response is said twice."""

from __future__ import annotations


def repetition_penalty(response: str, ngram_size: int = 20, max_penalty: float = -2.0) -> float:
    """`max_penalty * (1 - U / T)` over the T word n-grams of the response, U of them unique.

    Words are split at white space and compared in lower case. Fewer than `ngram_size` words: 0.0. The
    result lies in (max_penalty, 0].
    """
    if ngram_size < 1:
        raise ValueError(f"ngram_size is {ngram_size}; an n-gram has at least one word")
    words = response.lower().split()
    total = len(words) - ngram_size + 1
    if total < 1:
        return 0.0
    unique = len({tuple(words[start : start + ngram_size]) for start in range(total)})
    return max_penalty * (1 - unique / total) if unique < total else 0.0
