"""The authors' string of `<infoK>` items."""

from __future__ import annotations

import json

import pytest

from perception_r1_jax.data.key_info import format_key_info, parse_key_info


def test_the_authors_own_examples_there_and_back(shared_data):
    examples = json.loads((shared_data / "perception_r1" / "visual_key_info_examples.json").read_text())
    parsed = [parse_key_info(example["visual_key_info"]) for example in examples]
    assert [len(items) for items in parsed] == [3, 6, 3]
    assert parsed[1][4] == r"$m\angle S = (2x + 7)^\circ$"
    assert [format_key_info(items) for items in parsed] == [example["visual_key_info"] for example in examples]


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_no_items(text):
    assert parse_key_info(text) == ()


def test_an_item_may_span_lines_and_lose_its_margins():
    assert parse_key_info("<info1> a\nb </info1> <info2>c</info2>\n") == ("a\nb", "c")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no markup", "info1"),
        ("<info2>a</info2>", "info1"),
        ("<info1>a</info1><info3>c</info3>", "info2"),
        ("<info1>a</info1><info1>b</info1>", "info2"),
        ("<info1>a</info2>", "info1"),
        ("<info1>a</info1> and <info2>b</info2>", "info2"),
        ("<info1> </info1>", "info1"),
    ],
)
def test_malformed_text_says_where(text, expected):
    with pytest.raises(ValueError, match=f"expected <{expected}>"):
        parse_key_info(text)
