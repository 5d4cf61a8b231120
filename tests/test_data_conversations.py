"""Conversations from files of every form, what happens to bad rows, and those drawn by name."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perception_r1_jax.data import DataError, load_conversations
from perception_r1_jax.records import Message
from tests.parity import drawing

TURNS = [{"role": "user", "content": "<image>What is AB?"}, {"role": "assistant", "content": "7"}]
PARTS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is AB?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "7"}]},
]


def write_lines(folder, rows, split="train"):
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures/a.png").write_bytes(drawing(56, 56, 0))
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def test_json_lines(tmp_path):
    write_lines(tmp_path, [{"messages": TURNS, "images": ["pictures/a.png"]}, "", {"messages": PARTS[::2]}])
    conversations, summary = load_conversations(str(tmp_path), "train", seed=0)
    first, second = conversations
    assert first.conversation_id == "train/1"
    assert first.images == (tmp_path / "pictures/a.png",)
    assert first.messages == (Message("user", "<image>What is AB?"), Message("assistant", "7"))
    assert second.images == ()
    assert summary == f"{tmp_path} (train): 2 rows read, 2 conversations kept"
    assert list(load_conversations(str(tmp_path / "train.jsonl"), "any", seed=0)[0]) == list(conversations)


def test_contents_in_parts_are_the_same_with_markers(tmp_path):
    write_lines(tmp_path, [{"messages": PARTS, "images": ["pictures/a.png"]}])
    ((conversation,), _) = load_conversations(str(tmp_path), "train", seed=0)
    assert conversation.messages[1:] == (Message("user", "<image>What is AB?"), Message("assistant", "7"))


@pytest.mark.parametrize("form", ["bytes", "path", "struct"])
def test_parquet(tmp_path, form):
    encoded = drawing(56, 56, 1)
    (tmp_path / "a.png").write_bytes(encoded)
    image = {"bytes": encoded, "path": "a.png", "struct": {"bytes": encoded, "path": None}}[form]
    table = pa.Table.from_pylist([{"messages": TURNS, "images": [image]}, {"messages": TURNS[1:], "images": None}])
    pq.write_table(table, tmp_path / "val-0.parquet")
    first, second = load_conversations(str(tmp_path), "val", seed=0)[0]
    assert first.images == ((tmp_path / "a.png",) if form == "path" else (encoded,))
    assert (first.conversation_id, second.images) == ("val-0/0", ())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "invalid JSON"),
        ({"prompt": "a"}, "messages or images are no list"),
        ({"messages": TURNS, "images": "pictures/a.png"}, "messages or images are no list"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "a message without a role"),
        ({"messages": [{"role": "user"}]}, "a message without a role"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "a part that is neither text nor image"),
        ({"messages": TURNS[:1], "images": ["pictures/a.png"]}, "no response"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": ""}]}, "no response"),
        ({"messages": TURNS, "images": ["pictures/b.png"]}, "absent image"),
        ({"messages": TURNS, "images": [None]}, "absent image"),
        ({"messages": [*TURNS, {"role": "user", "content": "\ud800"}]}, "text is not Unicode"),
    ],
)
def test_bad_rows_are_left_out_counted_and_named(tmp_path, row, reason):
    write_lines(tmp_path, [{"messages": TURNS}, row, {"messages": TURNS}])
    conversations, summary = load_conversations(str(tmp_path), "train", seed=0)
    assert [one.conversation_id for one in conversations] == ["train/1", "train/3"]
    heading, fault = summary.split("\n")
    assert heading.endswith("3 rows read, 2 conversations kept")
    assert fault.startswith(f"  skipped, {reason}")
    assert "1 (train/2: " in fault


def test_a_source_without_any_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no \.jsonl or \.parquet file and no folder with train\.jsonl"):
        load_conversations(str(tmp_path), "train", seed=0)
    write_lines(tmp_path, [{"messages": []}])
    with pytest.raises(DataError, match=r"No usable conversation in .*\n.*1 rows read, 0 conversations kept"):
        load_conversations(str(tmp_path), "train", seed=0)
    pq.write_table(pa.table({"messages": ["text"], "images": [None]}), tmp_path / "val.parquet")
    with pytest.raises(DataError, match="column 'messages' is string, expected a list of struct<role"):
        load_conversations(str(tmp_path), "val", seed=0)


def test_the_world_draws_without_end():
    policy, summary = load_conversations("geometry_world:policy", "train", seed=3)
    assert "drawn when it is needed" in summary
    assert policy[10**9] == policy[10**9]
    assert policy[0] != policy[1]
    assert policy[0] != load_conversations("geometry_world:policy", "val", seed=3)[0][0]
    assert policy[0] != load_conversations("geometry_world:policy", "train", seed=4)[0][0]
    judge, _ = load_conversations("geometry_world:judge", "val", seed=3)
    assert judge[5].images == ()
    assert judge[5].messages[-1].role == "assistant"
    with pytest.raises(DataError, match=r"has no split 'dev'; set data\.split to one of train, val, test"):
        load_conversations("geometry_world:judge", "dev", seed=0)
