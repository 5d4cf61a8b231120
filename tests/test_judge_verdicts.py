"""Verdicts are read exactly or not at all, and the authors' reading is reproduced to the letter."""

from __future__ import annotations

import json
import random
import re
import time

import pytest

from perception_r1_jax.judge.verdicts import parse_verdicts, parse_verdicts_paper

TWO = "<info1>1</info1>\n<info2>0</info2>"

WELL_FORMED = [
    ("<info1>1</info1>", 1, (1,)),
    (TWO, 2, (1, 0)),
    (f"\n  {TWO}\t\r\n", 2, (1, 0)),
    ("<info1>1</info1><info2>0</info2>", 2, (1, 0)),
    ("<info1> 1\n</info1> \n\n <info2>0 </info2>", 2, (1, 0)),
    ("<info2>0</info2>\n<info1>1</info1>", 2, (1, 0)),  # numbered, so the order cannot mislead
    ("\n".join(f"<info{k}>{k % 2}</info{k}>" for k in range(1, 13)), 12, (1, 0) * 6),
    (f"<think>\nIs it <info1>0</info1>? No.\n</think>\n\n{TWO}", 2, (1, 0)),
    (f"The template has opened the thoughts. </think>{TWO}", 2, (1, 0)),
]

FAILURES = [
    # text, expected, status, parsed
    ("", 2, "empty", 0),
    (" \n\t", 2, "empty", 0),
    (None, 2, "empty", 0),
    (TWO.encode(), 2, "unreadable", 0),
    (1.0, 1, "unreadable", 0),
    (["<info1>1</info1>"], 1, "unreadable", 0),
    ("I cannot judge this.", 2, "unreadable", 0),
    (f"<think>\n{TWO}\n</think>\n", 2, "empty", 0),  # thoughts without an answer
    (f"<think>\n{TWO}", 2, "unreadable", 2),  # thoughts without an end
    (f"{TWO}\n<think>Both are clear.", 2, "unreadable", 2),
    ("1 0", 2, "unreadable", 0),
    (f"Judgement: {TWO}", 2, "unreadable", 2),
    (f"{TWO}\nBoth are clear.", 2, "unreadable", 2),
    ("<info1>1</info1>, <info2>0</info2>", 2, "unreadable", 2),
    ("<info1>1</info1>\n<info2>", 2, "unreadable", 1),
    ("<info1>1</info1>\n<info2>0", 2, "unreadable", 1),
    ("<info1>2</info1>", 1, "unreadable", 0),
    ("<info1>0.5</info1>", 1, "unreadable", 0),
    ("<info1>1.0</info1>", 1, "unreadable", 0),
    ("<info1>-1</info1>", 1, "unreadable", 0),
    ("<info1>01</info1>", 1, "unreadable", 0),
    ("<info1>nan</info1>", 1, "unreadable", 0),
    ("<info1>yes</info1>", 1, "unreadable", 0),
    ("<info1>1 or 0</info1>", 1, "unreadable", 0),
    ("<info1></info1>", 1, "unreadable", 0),
    ("<info1>１</info1>", 1, "unreadable", 0),
    ("<info１>1</info１>", 1, "unreadable", 0),
    ("<info01>1</info01>", 1, "unreadable", 0),
    ("<info0>1</info0>", 1, "unreadable", 0),
    ("<INFO1>1</INFO1>", 1, "unreadable", 0),
    ("<info 1>1</info 1>", 1, "unreadable", 0),
    ("<info1>1</info2>", 1, "unreadable", 0),
    ("<info1>1</info12>", 1, "unreadable", 0),
    ("<info1>1<info1>", 1, "unreadable", 0),
    ("<info1><info2>1</info2></info1>", 2, "unreadable", 1),
    ("<info1><info1>1</info1></info1>", 1, "unreadable", 1),
    ("<info1>1\x00</info1>", 1, "unreadable", 0),
    (f"<info{'1' * 5000}>1</info{'1' * 5000}>", 1, "unreadable", 0),
    ("<info1>1</info1>\n<info1>1</info1>", 1, "repeated", 2),
    ("<info1>1</info1>\n<info1>0</info1>", 2, "repeated", 2),
    (f"{TWO}\n<info1>0</info1>", 2, "repeated", 3),
    (f"{TWO}\n<info3>1</info3>", 2, "extra", 3),
    ("<info1>1</info1>\n<info3>1</info3>", 2, "extra", 2),
    ("<info1>1</info1>", 2, "missing", 1),
    ("<info2>1</info2>", 2, "missing", 1),
    ("<info1>1</info1>\n<info3>1</info3>", 3, "missing", 2),
]


@pytest.mark.parametrize(("text", "expected", "verdicts"), WELL_FORMED)
def test_well_formed_answers_give_their_verdicts(text, expected, verdicts):
    judgement = parse_verdicts(text, expected)
    assert (judgement.verdicts, judgement.status, judgement.failed) == (verdicts, "ok", False)
    assert (judgement.expected, judgement.parsed) == (expected, expected)


@pytest.mark.parametrize(("text", "expected", "status", "parsed"), FAILURES)
def test_anything_else_is_a_failure_with_its_reason(text, expected, status, parsed):
    judgement = parse_verdicts(text, expected)
    assert (judgement.verdicts, judgement.status, judgement.failed) == (None, status, True)
    assert (judgement.expected, judgement.parsed) == (expected, parsed)


def test_without_annotations_nothing_is_asked_and_nothing_fails():
    judgement = parse_verdicts("", 0)
    assert (judgement.verdicts, judgement.status, judgement.failed) == (None, "none", False)


LONG = {
    "prose": "the angle is right " * 20_000,
    "open tags": "<info1>" * 50_000,
    "closing tags": "</info1>" * 50_000,
    "nested": "".join(f"<info{k}>" for k in range(1, 30_000)) + "".join(f"</info{k}>" for k in range(1, 30_000)),
    "spaces": "<info1>" + " " * 400_000,
    "digits": "<info" + "1" * 400_000,
    "a number": f"<info1>{'1' * 400_000}</info1>",
    "repeated": "<info1>1</info1>" * 25_000,
    "surrogates": "\ud800" * 100_000,
}


@pytest.mark.parametrize("parse", [lambda text: parse_verdicts(text, 3).status != "ok", parse_verdicts_paper])
@pytest.mark.parametrize("name", LONG)
def test_long_answers_take_linear_time(name, parse):
    start = time.perf_counter()
    parse(LONG[name])
    assert time.perf_counter() - start < 2  # quadratic time would be minutes


def test_well_formed_long_answer_is_read():
    text = "\n".join(f"<info{k}>1</info{k}>" for k in range(1, 10_001))
    assert parse_verdicts(text, 10_000).verdicts == (1.0,) * 10_000
    assert parse_verdicts_paper(text) == (1.0,) * 10_000


PAPER = [
    (TWO, (1, 0)),
    ("no verdict at all", ()),
    (None, ()),
    (TWO.encode(), ()),
    ("<info2>1</info2>", ()),  # stops at the first absent number
    ("<info1>1</info1>\n<info3>1</info3>", (1,)),
    ("<info1>1</info1> then <info1>0</info1>", (0,)),  # the last wins
    ("<info1>0.25</info1><info2>7</info2><info3>-3</info3>", (0.25, 1, 0)),
    ("<info1>nan</info1><info2>inf</info2><info3>1e-1</info3>", (1, 1, 0.1)),
    ("<info1>yes</info1><info2> 1 </info2><info3>１</info3>", (0, 1, 1)),
    ("Judgement: <info1>1</info1>, as it says.", (1,)),
    ("<info1></info1>", ()),
    ("<info1></info1> </info1>", (0,)),  # its content is then "</info1> "
    ("<info1>1</info1><info1>", (1,)),
    ("<info1><info2>1</info2></info1>", (0, 1)),
    ("<info01>1</info01>", ()),
]


@pytest.mark.parametrize(("text", "scores"), PAPER)
def test_authors_reading(text, scores):
    assert parse_verdicts_paper(text) == scores


def greedy_oracle(text: str) -> tuple[float, ...]:
    """METHOD's words as a regular expression: a greedy prefix finds the last item."""
    scores = []
    while found := re.search(rf"(?s).*<info{len(scores) + 1}>(.+?)</info{len(scores) + 1}>", text):
        try:
            scores.append(float(max(0, min(1, float(found[1])))))
        except ValueError:
            scores.append(0.0)
    return tuple(scores)


def test_authors_reading_equals_a_greedy_search_on_random_texts():
    draw = random.Random(0)
    parts = [f"<{slash}info{k}>" for slash in ("", "/") for k in (1, 2, 3)] + ["1", "0", "nan", "0.5", "x", " ", "\n"]
    texts = ["".join(draw.choices(parts, k=draw.randint(1, 14))) for _ in range(20_000)]
    assert [parse_verdicts_paper(text) for text in texts] == [greedy_oracle(text) for text in texts]


def test_authors_own_examples_read_the_same_both_ways(shared_data):
    examples = json.loads((shared_data / "perception_r1" / "visual_key_info_examples.json").read_text())
    sums = []
    for example in examples:
        count = len(re.findall(r"<info\d+>", example["visual_key_info"]))
        strict, lenient = parse_verdicts(example["judgement"], count), parse_verdicts_paper(example["judgement"])
        assert strict.verdicts == lenient
        sums.append((sum(lenient), count))
    assert sums == [(2, 3), (5, 6), (0, 3)]
