"""Files of prompts: what a line becomes, and what is said of one that cannot be read."""

from __future__ import annotations

import json

import pytest

from perception_r1_jax.data.errors import DataError, DroppedProblem
from perception_r1_jax.data.prompt_file import read_prompts
from perception_r1_jax.records import Problem


@pytest.fixture
def read(tmp_path):
    """Reads lines, given as text or as what JSON makes of them."""

    def read(*lines):
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / "prompts.jsonl").write_text("\n".join(texts))
        return read_prompts(tmp_path / "prompts.jsonl")

    return read


def test_lines_become_problems_in_their_order(read, tmp_path):
    lines = (
        {"prompt": "<image> 98°?", "images": ["a.png", "/b.png"], "id": "z"},
        "",
        {"prompt": "", "id": 12},
        {"prompt": "x", "images": None, "id": None, "answer": 5},
    )
    assert list(read(*lines).items()) == [
        ("z", Problem("z", "<image> 98°?", (tmp_path / "a.png", tmp_path.joinpath("/b.png")), "")),
        (12, Problem("12", "", (), "")),
        (4, Problem("4", "x", (), "")),
    ]


@pytest.mark.parametrize(
    ("line", "name", "fault"),
    [
        ("{", 2, "invalid JSON"),
        ("[1]", 2, "not a JSON object (list)"),
        ({"images": []}, 2, "'prompt' is not a text (it is missing)"),
        ({"prompt": None, "id": "n"}, "n", "'prompt' is not a text (None)"),
        ({"prompt": "x", "images": "a.png"}, 2, "'images' is not a list of paths ('a.png')"),
        ({"prompt": "x", "images": [3]}, 2, "'images' is not a list of paths ([3])"),
        ({"prompt": "x", "id": True}, 2, "'id' is neither a text nor a whole number (True)"),
        ({"prompt": "x", "id": ["a"]}, 2, "'id' is neither a text nor a whole number (['a'])"),
    ],
)
def test_a_line_that_cannot_be_read_is_kept_with_its_fault(read, line, name, fault):
    before, (told, dropped) = list(read({"prompt": "fine"}, line).items())
    assert isinstance(before[1], Problem)
    assert told == name
    assert isinstance(dropped, DroppedProblem)
    assert dropped.problem_id == str(name)
    assert dropped.fault.startswith(fault)


@pytest.mark.parametrize(("first", "second"), [("a", "a"), (3, "3"), (2, None)])
def test_an_id_is_that_of_one_line(read, first, second):
    with pytest.raises(DataError, match=r"prompts\.jsonl: lines 1 and 2 both have the id '\w'"):
        read({"prompt": "x", "id": first}, {"prompt": "y", "id": second})


def test_an_empty_file_is_named(read):
    with pytest.raises(DataError, match=r"prompts\.jsonl holds no prompt"):
        read("", " ")
