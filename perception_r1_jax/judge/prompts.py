"""The judge's prompt: two templates from a JSON file, and the chat messages of one request.

The file holds `system` (the task and its worked examples, the same for every request) and `user` (with
`{annotations}` and `{response}`, each once), each a string or a list of lines. A file with the keys `judge_system`
and `judge_user` and the placeholder `{visual_key_info}`, as the paper's authors name them, is read too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.sanitise import sanitise
from perception_r1_jax.records import ImageSource, Problem

DEFAULT_PROMPT = Path(__file__).with_name("prompt.json")
_KEYS = (("system", "user"), ("judge_system", "judge_user"))
_PLACEHOLDER = re.compile(r"\{(?P<name>annotations|visual_key_info|response)\}")
# A short text before a colon that introduces a placeholder, an example's facts or verdicts, or the judge's answer.
_HEADING = re.compile(
    r"^([^\n:<{}]{1,40}):\s*(?=<info1>|\{(?:annotations|visual_key_info|question|response)\}|\Z)", re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
    """One response to judge: which of the M annotations does it show?"""

    annotations: tuple[str, ...]
    response: str
    images: ClassVar[tuple[ImageSource, ...]] = ()

    @property
    def expected(self) -> int:
        """m, the verdicts to be given; 0 where there is nothing to ask."""
        return len(self.annotations)

    @property
    def content(self) -> tuple[str, ...]:
        """All that a judgement depends on."""
        return (*self.annotations, self.response)


@dataclasses.dataclass(frozen=True)
class JudgePrompt:
    """The two templates of a judge's prompt."""

    system: str
    user: str

    @functools.cached_property
    def headings(self) -> tuple[str, ...]:
        """The words, without colon, of the section headings that a response must not imitate."""
        return find_headings(self.system, self.user)

    def request(self, problem: Problem, response: str) -> JudgeRequest:
        """What is asked about a response to a problem."""
        return JudgeRequest(problem.annotations, response)

    def messages(self, request: JudgeRequest) -> list[dict[str, str]]:
        """The request as chat messages, its texts sanitised."""
        annotations = [sanitise(annotation, self.headings) for annotation in request.annotations]
        return self._messages(annotations, sanitise(request.response, self.headings))

    def raw_messages(self, request: JudgeRequest) -> list[dict[str, str]]:
        """The request with its texts pasted in as they are, as the authors' code does.

        Only lone surrogates, which have no encoding to paste, become question marks.
        """
        annotations, response = [encodable(text) for text in request.annotations], encodable(request.response)
        return self._messages(annotations, response)

    def read_messages(self, messages: object, *, raw: bool = False) -> JudgeRequest:
        """The request that `messages`, or with `raw` `raw_messages`, gives these for: their inverse. Takes anything.

        Raises:
            UserError: no request gives these messages.
        """
        request = self._read_user(_user_content(messages))
        if request is None or messages != (self.raw_messages(request) if raw else self.messages(request)):
            raise UserError(
                "the messages are not those of this judge's prompt: its system turn, and a user turn with the numbered "
                "annotations and the sanitised response. Use the same prompt file on both sides."
            )
        return request

    def _read_user(self, text: str) -> JudgeRequest | None:
        """The request of a user turn, as far as the template's texts around the placeholders show it."""
        before, first, between, _, after = _PLACEHOLDER.split(self.user)
        if not (text.startswith(before) and text.endswith(after)):
            return None
        inner = text[len(before) : len(text) - len(after)]
        if first == "response":
            start = inner.rfind("<info1>")
            return JudgeRequest(_read_lines(inner[start:])[0], inner[:start].removesuffix(between))
        annotations, end = _read_lines(inner)
        return JudgeRequest(annotations, inner[end:].removeprefix(between))

    def _messages(self, annotations: Sequence[str], response: str) -> list[dict[str, str]]:
        lines = "\n".join(f"<info{number}>{text}</info{number}>" for number, text in enumerate(annotations, 1))
        values = {"annotations": lines, "visual_key_info": lines, "response": response}
        # In one pass, so that a placeholder inside a response stays text.
        user = _PLACEHOLDER.sub(lambda match: values[match["name"]], self.user)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def _user_content(messages: object) -> str:
    """The text of the last message; "" where there is none."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    return content if isinstance(content, str) else ""


def _read_lines(text: str) -> tuple[tuple[str, ...], int]:
    """The numbered annotations that a text begins with, and where they end."""
    found, end = [], 0
    while text.startswith(opening := ("\n" if found else "") + f"<info{len(found) + 1}>", end):
        start, closing = end + len(opening), f"</info{len(found) + 1}>"
        if (close := text.find(closing, start)) < 0:
            break
        found.append(text[start:close])
        end = close + len(closing)
    return tuple(found), end


def find_headings(system: str, user: str) -> tuple[str, ...]:
    """The words, without colon, of the section headings in two templates."""
    return tuple(dict.fromkeys(match[1] for match in _HEADING.finditer(f"{system}\n{user}")))


def encodable(text: str) -> str:
    """The text with question marks for lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")


def load_prompt(path: str | Path = "") -> JudgePrompt:
    """The prompt in a JSON file of the form above; the project's own without a path.

    Raises:
        FileNotFoundError: no such file.
        UserError: no JSON object, a template missing or no text, a placeholder missing or repeated.
    """
    path = Path(path) if str(path) else DEFAULT_PROMPT
    templates = JudgePrompt(*read_templates(path, _KEYS))
    found = sorted(_PLACEHOLDER.findall(templates.user))
    if found not in (["annotations", "response"], ["response", "visual_key_info"]):
        raise UserError(
            f"judge prompt {path}: the user template holds the placeholders {found}. "
            "It needs {annotations} and {response}, each once."
        )
    return templates


def read_templates(path: Path, names: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The system and the user template in a file, under one of these pairs of keys. Raises as `load_prompt`."""
    if not path.is_file():
        raise FileNotFoundError(f"judge prompt {path} is not a file. Correct config.judge.prompt, or leave it empty.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"judge prompt {path} is no JSON text in UTF-8 ({error}). See docs/judge.md.") from error
    for system, user in names:
        if isinstance(content, Mapping) and system in content and user in content:
            return _template(path, system, content[system]), _template(path, user, content[user])
    raise UserError(f"judge prompt {path} is no JSON object with the keys 'system' and 'user'. See docs/judge.md.")


def _template(path: Path, key: str, value: Any) -> str:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"judge prompt {path}: {key!r} is {value!r}; it must be a string or a list of lines.")
    return "\n".join(lines)
