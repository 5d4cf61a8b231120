"""The judge's answer as a template of tokens in which only the digits are open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from perception_r1_jax.errors import UserError

MODES = ("constrained", "free")
"""How an answer comes about: from the template, or written by the model as it likes."""


class AnswerTemplate(NamedTuple):
    """tokens: int32 [T], -1 at each digit; choice_ids: the tokens "0" and "1" as they stand there."""

    tokens: np.ndarray
    choice_ids: tuple[int, int]

    @property
    def opening(self) -> np.ndarray:
        """What stands before the first digit."""
        return self._texts[0]

    @property
    def between(self) -> list[list[int]]:
        """What stands between one digit and the next."""
        return [text[1:].tolist() for text in self._texts[1:-1]]

    def fill(self, digits: np.ndarray) -> np.ndarray:
        """The tokens of the answer with these digits, each 0 or 1."""
        tokens = self.tokens.copy()
        tokens[tokens < 0] = np.array(self.choice_ids)[digits]
        return tokens

    @property
    def _texts(self) -> list[np.ndarray]:
        """Cut before each digit."""
        return np.split(self.tokens, np.flatnonzero(self.tokens < 0))


def answer_text(verdicts: Sequence[int]) -> str:
    """The answer that states these verdicts: `<info1>1</info1>`, a line each."""
    return "\n".join(f"<info{number}>{verdict}</info{number}>" for number, verdict in enumerate(verdicts, 1))


def answer_template(tokenizer: Any, count: int) -> AnswerTemplate:
    """The template of an answer with `count` verdicts, in the tokens of a Hugging Face tokenizer.

    Raises:
        UserError: a digit is no token of its own there, so a template cannot leave it open.
    """
    zeros, ones = (
        np.asarray(tokenizer.encode(answer_text([digit] * count), add_special_tokens=False), np.int32)
        for digit in (0, 1)
    )
    places = np.flatnonzero(zeros != ones) if zeros.shape == ones.shape else np.zeros(0, np.int64)
    pairs = {(int(zeros[place]), int(ones[place])) for place in places}
    if len(places) != count or len(pairs) != 1:
        raise UserError(
            f"the judge's tokenizer {type(tokenizer).__name__} does not give the verdicts of {answer_text([0, 1])!r} "
            "a token each. Set config.judge.mode='free' for this judge."
        )
    tokens = zeros.copy()
    tokens[places] = -1
    return AnswerTemplate(tokens, pairs.pop())


def opening_behind_text(tokenizer: Any) -> np.ndarray:
    """The tokens of an answer up to its first digit, int32, where text stands before it, as thoughts do.

    SentencePiece puts a space in front of what it encodes, which no model writes within its own text. So these are
    taken from behind a line end.

    Raises:
        UserError: the line end or the rest of the answer has other tokens there.
    """
    alone = answer_template(tokenizer, 1)
    before, rest = tokenizer.encode("\n", add_special_tokens=False), alone.fill(np.zeros(1, int))[len(alone.opening) :]
    whole = np.asarray(tokenizer.encode("\n" + answer_text([0]), add_special_tokens=False), np.int32)
    opening = whole[len(before) : len(whole) - len(rest)]
    if not np.array_equal(whole, np.concatenate([before, opening, rest])):
        raise UserError(
            f"the judge's tokenizer {type(tokenizer).__name__} joins {answer_text([0])!r} with the text before it. Set "
            "config.judge.mode='free', or config.judge.max_thought_tokens=0, for this judge."
        )
    return opening
