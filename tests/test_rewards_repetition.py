"""The repetition penalty by hand-counted texts."""

from __future__ import annotations

import time

import pytest

from perception_r1_jax.rewards import repetition_penalty


@pytest.mark.parametrize(
    ("response", "ngram_size", "expected"),
    [
        ("", 20, 0.0),
        ("word " * 19, 20, 0.0),
        ("word " * 20, 20, 0.0),  # one 20-gram
        ("word " * 21, 20, -1.0),  # two, one of them unique
        ("word " * 39, 20, -1.9),  # twenty, one unique
        (" ".join(map(str, range(500))), 20, 0.0),
        (" ".join(map(str, range(20))) + " " + " ".join(map(str, range(20))), 20, -2.0 / 21),  # 21, 20 unique
        ("a b a b a b", 2, -2.0 * (1 - 2 / 5)),
        ("A\tb\n\na  B", 2, -2.0 / 3),  # ab, ba, ab: case and kind of white space do not matter
        ("a b a c", 1, -0.5),
    ],
)
def test_counts(response, ngram_size, expected):
    assert repetition_penalty(response, ngram_size=ngram_size) == pytest.approx(expected, abs=1e-12)


def test_scale_and_range():
    assert repetition_penalty("word " * 21, max_penalty=-4.0) == -2.0
    assert -2.0 < repetition_penalty("word " * 5000) < -1.99
    assert str(repetition_penalty("a b")) == str(repetition_penalty("a b c", 1)) == "0.0"


def test_no_words_in_an_ngram_is_an_error():
    with pytest.raises(ValueError, match="ngram_size is 0"):
        repetition_penalty("a b", ngram_size=0)


def test_long_text_is_fast():
    start = time.perf_counter()
    repetition_penalty("a " * 50_000)
    assert time.perf_counter() - start < 2.0
