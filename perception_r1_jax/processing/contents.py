"""What stands in each turn: texts and pictures in their order, as the chat template takes them."""

from __future__ import annotations

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.processing.chat import Message as ChatMessage
from perception_r1_jax.records import IMAGE_MARKER, Conversation, Problem

Content = str | list[dict[str, str]]


def user_content(problem: Problem, suffix: str = "", markers: bool = True) -> Content:
    """The content of a problem's user turn: a string without pictures, else its parts in order.

    The text stays as the data set has it, white space included; empty parts are left out.

    Raises:
        DroppedProblem: as many markers as pictures are needed, or none with pictures.
    """
    *before, last = split_question(problem) if markers else [*[""] * len(problem.images), problem.question]
    return parts([*before, f"{last} {suffix}" if suffix else last])


def split_question(problem: Problem) -> list[str]:
    """The texts of a question that has a picture between each two: at its markers, or all before it without any.

    Raises:
        DroppedProblem: as many markers as pictures are needed, or none with pictures.
    """
    *before, last = problem.question.split(IMAGE_MARKER)
    _check_markers(problem.problem_id, len(before), len(problem.images))
    return [*(before or [""] * len(problem.images)), last]


def chat_messages(conversation: Conversation) -> list[ChatMessage]:
    """The turns of a conversation. Without markers its pictures stand before the text of the first user turn.

    Raises:
        DroppedProblem: as many markers as pictures are needed in the user turns, or none with pictures.
    """
    markers = sum(m.content.count(IMAGE_MARKER) for m in conversation.messages if m.role == "user")
    _check_markers(conversation.conversation_id, markers, len(conversation.images))
    leading = 0 if markers else len(conversation.images)
    messages: list[ChatMessage] = []
    for message in conversation.messages:
        content: Content = message.content
        if message.role == "user":
            content, leading = parts([""] * leading + message.content.split(IMAGE_MARKER)), 0
        messages.append({"role": message.role, "content": content})
    return messages


def _check_markers(name: str, markers: int, pictures: int) -> None:
    if markers and markers != pictures:
        detail = f"{pictures} pictures for {markers} {IMAGE_MARKER} markers"
        raise DroppedProblem(name, "pictures and markers differ in number", detail)


def parts(texts: list[str]) -> Content:
    """The content of a turn with a picture between each two texts; empty texts are left out."""
    if len(texts) == 1:
        return texts[0]
    found: list[dict[str, str]] = []
    for text in texts:
        found += [{"type": "text", "text": text}, {"type": "image"}]
    return [part for part in found[:-1] if part.get("text") != ""]
