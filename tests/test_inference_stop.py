"""Where stop strings end a response, against a search in its bytes and against transformers."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.assets import SMALL_TOKENIZER
from perception_r1_jax.inference.stop import are_stop_strings, stop_length
from perception_r1_jax.processing.tokenizer import load_tokenizer

ALPHABET = "aabb é€😀\n"


class Bytes:
    """A tokenizer of which each token is some bytes, possibly none; it notes the texts that it is asked for."""

    def __init__(self, *vocabulary: str | bytes):
        self.vocabulary = [piece.encode() if isinstance(piece, str) else piece for piece in vocabulary]
        self.asked: list[int] = []

    def decode(self, tokens) -> str:
        self.asked += list(tokens)
        return b"".join(self.vocabulary[token] for token in tokens).decode(errors="replace")


def first_end(pieces: list[bytes], stop_strings: tuple[str, ...]) -> int | None:
    """The oracle: the least number of pieces whose bytes contain a stop string's."""
    for length in range(len(pieces) + 1):
        if any(string.encode() in b"".join(pieces[:length]) for string in stop_strings):
            return length
    return None


E, EURO = "é".encode(), "€".encode()


@pytest.mark.parametrize(
    ("pieces", "stop_strings", "length"),
    [
        (["a", "END", "b"], ("END",), 2),
        (["a", "E", "N", "D", "b"], ("END",), 4),
        (["a", "xE", "N", "Dy", "b"], ("END",), 4),
        (["a xENDy", "b"], ("END",), 1),
        (["a", "E", "", "", "ND", "END"], ("END",), 5),
        (["a", "b", "c"], ("END",), None),
        (["a", "EN", "d"], ("END",), None),
        ([], ("END",), None),
        (["END"], (), None),
        (["a", "b", "c", "d"], ("cd", "b"), 2),
        (["a", "b", "c", "d"], ("abcd", "bc"), 3),
        (["E", "EN", "END"], ("END",), 3),
        (["a", E[:1], E[1:], "b"], ("é",), 3),
        (["a", E[:1], E[1:] + EURO[:1], EURO[1:2], EURO[2:]], ("é",), 3),
        (["a", E[:1], E[1:] + EURO[:1], EURO[1:2], EURO[2:]], ("é€",), 5),
        (["END" + "😀"[:0], b"END"[:2] + E[:1], E[1:]], ("END",), 1),
        ([b"EN", b"D" + E[:1], E[1:]], ("END",), 2),
        ([E[:1], "END", "b"], ("END",), 2),
        ([E[1:], E[1:], "END", "b"], ("END",), 3),
    ],
)
def test_a_response_ends_with_the_token_that_completes_a_stop_string(pieces, stop_strings, length):
    tokenizer = Bytes(*pieces)
    assert stop_length(tokenizer.decode, range(len(pieces)), stop_strings) == length
    assert first_end(tokenizer.vocabulary, stop_strings) == length


def random_case(seed: int) -> tuple[list[bytes], tuple[str, ...]]:
    """A text cut anywhere, inside of characters too, with tokens of no text; and stop strings, mostly found in it."""
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list(ALPHABET), rng.integers(1, 60)))
    data = text.encode()
    if seed % 4 == 0:  # bytes that are no text
        data = data[:10] + bytes(rng.integers(128, 256, 4).astype(np.uint8)) + data[10:]
    cuts = np.sort(rng.integers(0, len(data) + 1, rng.integers(0, len(data) + 1)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]
    strings = []
    for _ in range(rng.integers(1, 4)):
        begin, size = rng.integers(0, len(text)), rng.integers(2, 6)
        strings.append(text[begin : begin + size] if rng.random() < 0.3 else "".join(rng.choice(list(ALPHABET), size)))
    return pieces, tuple(strings)


@pytest.mark.parametrize("seed", range(60))
def test_the_answer_does_not_depend_on_when_it_is_asked(seed):
    pieces, stop_strings = random_case(seed)
    expected = first_end(pieces, stop_strings)
    tokenizer, tokens = Bytes(*pieces), np.arange(len(pieces))
    assert stop_length(tokenizer.decode, tokens, stop_strings) == expected
    for chunk in (1, 2, 3, 7):
        found, done = None, 0
        while found is None and done < len(pieces):
            start, done = done, min(done + chunk, len(pieces))
            found = stop_length(tokenizer.decode, tokens[:done], stop_strings, start)
            assert found is None or start < found <= done
        assert found == expected


def test_the_random_cases_have_both_answers():
    ends = [first_end(*random_case(seed)) for seed in range(60)]
    assert 10 < ends.count(None) < 50


def test_old_text_is_not_decoded_again():
    tokenizer = Bytes("a", "END")
    tokens = [0] * 4000
    assert stop_length(tokenizer.decode, tokens, ("END",), start=3990) is None
    assert len(tokenizer.asked) <= 3 + (3 + 10)
    tokenizer.asked.clear()
    assert stop_length(tokenizer.decode, [*tokens, 1, *tokens], ("END",)) == 4001
    assert len(tokenizer.asked) <= 14 * 8001  # a bisection, not a step for each token


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SMALL_TOKENIZER, 10_000)


def real_cases(tokenizer):
    """Responses of a real tokenizer: texts cut in its way, and tokens at random, so that characters break."""
    rng = np.random.default_rng(0)
    for text in ("Angle ABC is 43°. </answer> So", "é€😀 </answer", "</answer></answer>", "a\n\nb </think>\n<answer>"):
        yield tokenizer(text).input_ids
        yield [token for letter in text for token in tokenizer(letter).input_ids]
    plain = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    for _ in range(40):
        yield rng.choice(plain, 30).tolist()


STOP_STRINGS = ("</answer>", "\n", "°", "😀 <", "is", "er")


def test_the_text_ends_there_and_not_before(tokenizer):
    found = 0
    for tokens in real_cases(tokenizer):
        length = stop_length(tokenizer.decode, tokens, STOP_STRINGS)
        stops = [any(x in tokenizer.decode(tokens[:n]) for x in STOP_STRINGS) for n in range(len(tokens) + 1)]
        assert length == (stops.index(True) if True in stops else None)
        found += length is not None
    assert found > 10


@pytest.mark.parametrize("stop_string", STOP_STRINGS)
def test_responses_end_where_transformers_ends_them(tokenizer, stop_string):
    torch = pytest.importorskip("torch")
    from transformers import StopStringCriteria

    criteria = StopStringCriteria(tokenizer, stop_string)
    for tokens in real_cases(tokenizer):
        stops = [bool(criteria(torch.tensor([tokens[:n]]), None)[0]) for n in range(1, len(tokens) + 1)]
        expected = stops.index(True) + 1 if True in stops else None
        assert stop_length(tokenizer.decode, tokens, (stop_string,)) == expected


@pytest.mark.parametrize(
    "wrong", ["END", ["END"], ("END", ""), (b"END",), (1,), None, ("END\N{REPLACEMENT CHARACTER}",)]
)
def test_stop_strings_are_texts_that_can_be_complete(wrong):
    assert not are_stop_strings(wrong)
    assert are_stop_strings(())
    assert are_stop_strings(("END", "é", "\n"))
