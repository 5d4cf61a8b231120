"""The file of a long job: what is kept when it is cut short, and what it goes on from."""

from __future__ import annotations

import json

import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.inference.reply_file import ReplyFile

ASKED = {"model": "m", "seed": 1}
ROWS = [{"id": "b", "text": "98° \ud800\n"}, {"id": 7, "text": "x"}, {"id": "a", "text": "y"}]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def cut_short(output, *rows):
    """A job that ends after some rows, as by an error."""
    with ReplyFile(output, ASKED) as kept:
        for row in rows:
            kept.add(row)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_stand_in_the_order_that_was_asked(output):
    output.write_text("older")
    with ReplyFile(output, ASKED) as kept:
        for row in ROWS:
            kept.add(row)
        assert output.read_text() == "older"
        kept.finish(["a", "b", 7])
    assert lines(output) == [ROWS[2], ROWS[0], ROWS[1]]
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]


def test_a_job_goes_on_with_what_was_kept(output):
    cut_short(output, *ROWS[:1])
    cut_short(output, *ROWS[1:2])
    with ReplyFile(output, ASKED) as kept:
        assert kept.rows == {"b": ROWS[0], 7: ROWS[1]}
        kept.add(ROWS[2])
        kept.finish(["b", 7, "a"])
    assert lines(output) == ROWS


@pytest.mark.parametrize("missing", range(1, 90, 4))
def test_a_file_cut_anywhere_keeps_its_whole_lines(output, missing):
    cut_short(output, *ROWS)
    partial = output.with_name("out.jsonl.partial")
    content = partial.read_bytes()
    partial.write_bytes(content[:-missing])
    whole = content[:-missing].count(b"\n")
    with ReplyFile(output, ASKED) as kept:
        assert list(kept.rows.values()) == ROWS[: max(whole - 1, 0)]
        for row in ROWS[len(kept.rows) :]:
            kept.add(row)
    with ReplyFile(output, ASKED) as kept:
        assert list(kept.rows.values()) == ROWS


def test_a_fault_is_written_at_the_end_and_tried_again_before(output):
    fault = {"id": "c", "error": "absent image"}
    cut_short(output, ROWS[0], fault)
    with ReplyFile(output, ASKED) as kept:
        assert list(kept.rows) == ["b"]
        kept.add(fault)
        kept.finish(["c", "b"])
    assert lines(output) == [fault, ROWS[0]]


def test_replies_to_something_else_are_left_alone(output):
    cut_short(output, ROWS[0])
    partial = output.with_name("out.jsonl.partial")
    content = partial.read_bytes()
    with pytest.raises(UserError, match=r"partial holds replies to something else \(seed was 1 and is 2\)\. Ask as"):
        ReplyFile(output, ASKED | {"seed": 2})
    assert partial.read_bytes() == content


def test_a_row_that_is_not_there_is_never_left_out_silently(output):
    with ReplyFile(output, ASKED) as kept:
        kept.add(ROWS[0])
        with pytest.raises(KeyError):
            kept.finish(["b", "a"])
        assert kept.partial.exists()
    assert not output.exists()
