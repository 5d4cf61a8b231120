"""The answer's template leaves exactly the digits open, or the judge's tokenizer is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import transformers

from perception_r1_jax.assets import SMALL_TOKENIZER
from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.template import answer_template, answer_text, opening_behind_text
from perception_r1_jax.judge.verdicts import parse_verdicts
from perception_r1_jax.processing.pieces import PieceTokenizer
from tests.pieces import trained


@pytest.fixture(scope="module", params=["own", "qwen"])
def tokenizer(request):
    folder = SMALL_TOKENIZER
    if request.param == "qwen":
        folder = request.getfixturevalue("shared_data") / "qwen2_5_vl_tokenizer"
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_answer_text_is_what_the_parser_reads():
    assert answer_text([1, 0]) == "<info1>1</info1>\n<info2>0</info2>"
    assert parse_verdicts(answer_text([1, 0, 1]), 3).verdicts == (1, 0, 1)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_filled_template_is_the_answer_as_it_would_be_written_freely(tokenizer, count):
    verdicts = [(5 * k) % 3 % 2 for k in range(count)]
    template = answer_template(tokenizer, count)
    tokens, choice_ids = template
    assert (tokens == -1).sum() == count
    written = tokenizer.encode(answer_text(verdicts), add_special_tokens=False)
    assert template.fill(np.array(verdicts)).tolist() == written
    parts = [template.opening, *template.between]
    put_together = [token for part, verdict in zip(parts, verdicts) for token in (*part, choice_ids[verdict])]
    assert put_together == written[: len(put_together)]
    assert tokenizer.decode(written[len(put_together) :]) == f"</info{count}>"


@pytest.mark.parametrize("count", [1, 3, 9, 12])
def test_a_longer_answer_begins_as_a_shorter_one(tokenizer, count):
    """So the text between the digits of one template serves all answers with fewer."""
    shorter, longer = answer_template(tokenizer, count), answer_template(tokenizer, 16)
    np.testing.assert_array_equal(shorter.opening, longer.opening)
    assert shorter.between == longer.between[: count - 1]


def test_behind_other_text_an_answer_opens_as_it_does_alone(tokenizer):
    """But with SentencePiece, whose space in front has no place there."""
    np.testing.assert_array_equal(opening_behind_text(tokenizer), answer_template(tokenizer, 1).opening)
    pieces = PieceTokenizer(trained(), {}, {})
    openings = answer_template(pieces, 1).opening, opening_behind_text(pieces)
    texts = [pieces.decode([*pieces.encode("a"), *opening.tolist()]) for opening in openings]
    assert texts == ["a <info1>", "a<info1>"]


def joining_tokenizer(text: str, add_special_tokens: bool) -> list[int]:
    """Characters, but for a line end and "<" in one token."""
    return [ord(character) for character in text.replace("\n<", "ß")]


def test_tokenizer_that_joins_an_answer_with_the_text_before_is_refused():
    with pytest.raises(UserError, match="joins '<info1>0</info1>' with the text before it"):
        opening_behind_text(SimpleNamespace(encode=joining_tokenizer))


def merging_tokenizer(text: str, add_special_tokens: bool) -> list[int]:
    """Characters, but for "1<" in one token."""
    return [ord(character) for character in text.replace("1<", "ß")]


def marking_tokenizer(text: str, add_special_tokens: bool) -> list[int]:
    """Characters, with other ids for digits in an odd place."""
    return [ord(character) + 1000 * (place % 2) for place, character in enumerate(text)]


@pytest.mark.parametrize("encode", [merging_tokenizer, marking_tokenizer])
def test_tokenizer_without_a_token_for_each_digit_is_refused(encode):
    with pytest.raises(UserError, match=r"judge\.mode='free'"):
        answer_template(SimpleNamespace(encode=encode), 12)
