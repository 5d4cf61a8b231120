"""Chat messages to token ids, so that nothing in a message's text can become a control token.

The template is rendered with a placeholder for each text, cut at the control tokens that the template itself
wrote, and only then are the texts put in and encoded, each run between two control tokens in one piece:

    <|im_start|> | user\\n «0» | <|im_end|> | \\n | <|im_start|> | assistant\\n | «1» | <|im_end|> | \\n

An assistant's text is a run of its own, as it is when it is generated after its header: training on a response and
sampling it see the same ids. For texts without control tokens the ids are those of encoding the rendered template as
a whole, unless an assistant's text begins with line ends, which would join the header's.

SentencePiece begins every run with a space of its own, as Mistral's tokenizer does for every turn. So a single space
that a template writes between a control token or an assistant's text and another text is not encoded once more:

    <s> | [INST] «0» [/INST] | «1» | </s> | [INST] «2» [/INST]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from perception_r1_jax.errors import UserError
from perception_r1_jax.json_files import read_json
from perception_r1_jax.processing.tokenizer import PIECES_FILE, leading_space, plain_encoder

_PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")

INST_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
"""The form of Mistral's instruction-tuned models, for a SentencePiece tokenizer that comes without a template."""

Message = Mapping[str, Any]
"""`role`, and `content`: a string, or parts `{"type": "text", "text": ...}` and `{"type": "image"}`."""


def read_chat_template(directories: Sequence[Path]) -> tuple[str, Path]:
    """The chat template of the first directory that has one, and its file.

    That is `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`, in this order; `INST_TEMPLATE` where
    none has but there is a `tokenizer.model`.

    Raises:
        FileNotFoundError: none has; names the places looked at.
    """
    for directory in directories:
        if (directory / "chat_template.jinja").is_file():
            return (directory / "chat_template.jinja").read_text(encoding="utf-8"), directory / "chat_template.jinja"
        for name in ("chat_template.json", "tokenizer_config.json"):
            if template := read_json(directory / name).get("chat_template"):
                return template, directory / name
    for directory in directories:
        if (directory / PIECES_FILE).is_file():
            return INST_TEMPLATE, directory / PIECES_FILE
    raise FileNotFoundError(
        f"no chat template: neither chat_template.jinja nor chat_template.json nor one in tokenizer_config.json in "
        f"{' or '.join(map(str, directories))}."
    )


class ChatEncoder:
    """Renders and encodes messages with one tokenizer and one chat template.

    Where the template has no place for a system turn, its text stands in front of the first user turn's, an empty line
    between them.
    """

    def __init__(self, tokenizer: Any, template: str, source: Path) -> None:
        """Raises `ValueError` naming `source`, the template's file, where a plain user turn cannot be rendered."""
        self._tokenizer, self._template = tokenizer, template
        self._added = tokenizer.added_tokens_encoder
        self._plain, self._space = plain_encoder(tokenizer), leading_space(tokenizer)
        self._control = "|".join(map(re.escape, sorted(self._added, key=len, reverse=True)))
        self._folds_system = not self._has_place_for_system()
        try:
            self.encode([{"role": "user", "content": ""}])
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template of {source} cannot be rendered: {error}") from error

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to the header of the assistant's turn; a picture is the template's own text, with a single
        image-pad token.
        """
        return [token for token, _ in self._encode(messages, add_generation_prompt=True)]

    def encode_conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Token ids as in `encode`, but up to the end of the last turn, and which of them the assistant writes: its
        texts, each with the control token that ends it.
        """
        ids, written = zip(*self._encode(messages, add_generation_prompt=False))
        return list(ids), list(written)

    def _encode(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> Iterator[tuple[int, bool]]:
        """Each token id, and whether the assistant writes it."""
        texts: list[str] = []
        hidden = [{**message, "content": _hide(message["content"], texts)} for message in messages]
        if self._folds_system:
            hidden = _fold_system(hidden)
        rendered = self._render(hidden, add_generation_prompt)
        responses = [message["content"] for message in hidden if message["role"] == "assistant"]
        written = False
        for piece in re.split(f"({'|'.join([self._control, *responses])})", rendered):
            if piece in self._added:
                yield self._added[piece], written
                written = False
            else:
                written = written or piece in responses
                piece = piece.removeprefix(self._space).removesuffix(self._space)
                yield from ((token, written) for token in self.encode_text(_reveal(piece, texts)))

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _has_place_for_system(self) -> bool:
        """Some templates raise on a system turn, others leave it out."""
        turns = [{"role": "system", "content": "\ue0000\ue001"}, {"role": "user", "content": ""}]
        try:
            return turns[0]["content"] in self._render(turns, add_generation_prompt=True)
        except jinja2.TemplateError:
            return False

    def encode_text(self, text: str) -> list[int]:
        """Token ids of text, control tokens spelled out. Raises `UnicodeEncodeError` for lone surrogates."""
        text.encode("utf-8")  # The tokenizer itself would speak of a wrong type.
        return self._plain(text)


def _fold_system(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with a leading system turn's text in front of the next turn's."""
    first, *rest = messages
    if first["role"] != "system" or not rest:
        return messages
    return [{**rest[0], "content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]]


def _hide(content: str | Sequence[Mapping[str, str]], texts: list[str]) -> Any:
    """The content with each text moved to `texts`, its place held by a placeholder."""
    if isinstance(content, str):
        texts.append(content)
        return f"\ue000{len(texts) - 1}\ue001"
    return [{**part, "text": _hide(part["text"], texts)} if "text" in part else part for part in content]


def _reveal(piece: str, texts: Sequence[str]) -> str:
    return _PLACEHOLDER.sub(lambda match: texts[int(match[1])], piece)
