"""The order of texts and pictures in the turns of a conversation."""

from __future__ import annotations

import pytest

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.processing.contents import chat_messages
from perception_r1_jax.records import Conversation, Message

IMAGE = {"type": "image"}


def text(content):
    return {"type": "text", "text": content}


def contents(pictures, *turns):
    messages = tuple(Message(role, content) for role, content in turns)
    return [message["content"] for message in chat_messages(Conversation("c", (b"",) * pictures, messages))]


def test_pictures_stand_at_the_markers_of_the_user_turns():
    made = contents(3, ("user", "<image>a<image>"), ("assistant", "b"), ("user", "c<image>d"))
    assert made == [[IMAGE, text("a"), IMAGE], "b", [text("c"), IMAGE, text("d")]]


def test_without_markers_they_stand_before_the_first_user_turn():
    made = contents(2, ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert made == ["s", [IMAGE, IMAGE, text("a")], "b", "c"]


def test_a_marker_elsewhere_is_text():
    assert contents(0, ("user", "a"), ("assistant", "a tag: <image>")) == ["a", "a tag: <image>"]


@pytest.mark.parametrize(("pictures", "markers"), [(1, 2), (0, 1), (3, 2)])
def test_another_number_of_markers_drops_the_conversation(pictures, markers):
    with pytest.raises(DroppedProblem, match=f"differ in number .{pictures} pictures for {markers} <image> markers"):
        contents(pictures, ("user", "<image>" * markers), ("assistant", "b"))
