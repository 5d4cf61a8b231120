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
from typing import Any

from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.sanitise import sanitise

DEFAULT_PROMPT = Path(__file__).with_name("prompt.json")
_KEYS = (("system", "user"), ("judge_system", "judge_user"))
_PLACEHOLDER = re.compile(r"\{(?P<name>annotations|visual_key_info|response)\}")
# A short text before a colon that introduces a placeholder, an example's facts or verdicts, or the judge's answer.
_HEADING = re.compile(rf"^([^\n:<{{}}]{{1,40}}):\s*(?=<info1>|{_PLACEHOLDER.pattern}|\Z)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
    """One response to judge: which of the M annotations does it show?"""

    annotations: tuple[str, ...]
    response: str


@dataclasses.dataclass(frozen=True)
class JudgePrompt:
    """The two templates of a judge's prompt."""

    system: str
    user: str

    @functools.cached_property
    def headings(self) -> tuple[str, ...]:
        """The words, without colon, of the section headings that a response must not imitate."""
        return tuple(dict.fromkeys(match[1] for match in _HEADING.finditer(f"{self.system}\n{self.user}")))

    def messages(self, request: JudgeRequest) -> list[dict[str, str]]:
        """The request as chat messages, its texts sanitised."""
        annotations = [sanitise(annotation, self.headings) for annotation in request.annotations]
        return self._messages(annotations, sanitise(request.response, self.headings))

    def raw_messages(self, request: JudgeRequest) -> list[dict[str, str]]:
        """The request with its texts pasted in as they are, as the authors' code does.

        Only lone surrogates, which have no encoding to paste, become question marks.
        """
        annotations, response = [_encodable(text) for text in request.annotations], _encodable(request.response)
        return self._messages(annotations, response)

    def _messages(self, annotations: Sequence[str], response: str) -> list[dict[str, str]]:
        lines = "\n".join(f"<info{number}>{text}</info{number}>" for number, text in enumerate(annotations, 1))
        values = {"annotations": lines, "visual_key_info": lines, "response": response}
        # In one pass, so that a placeholder inside a response stays text.
        user = _PLACEHOLDER.sub(lambda match: values[match["name"]], self.user)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def load_prompt(path: str | Path = "") -> JudgePrompt:
    """The prompt in a JSON file of the form above; the project's own without a path.

    Raises:
        FileNotFoundError: no such file.
        UserError: no JSON object, a template missing or no text, a placeholder missing or repeated.
    """
    path = Path(path) if str(path) else DEFAULT_PROMPT
    if not path.is_file():
        raise FileNotFoundError(f"judge prompt {path} is not a file. Correct config.judge.prompt, or leave it empty.")
    templates = _read_templates(path)
    found = sorted(_PLACEHOLDER.findall(templates.user))
    if found not in (["annotations", "response"], ["response", "visual_key_info"]):
        raise UserError(
            f"judge prompt {path}: the user template holds the placeholders {found}. "
            "It needs {annotations} and {response}, each once."
        )
    return templates


def _read_templates(path: Path) -> JudgePrompt:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"judge prompt {path} is no JSON text in UTF-8 ({error}). See docs/judge.md.") from error
    for keys in _KEYS:
        if isinstance(content, Mapping) and all(key in content for key in keys):
            return JudgePrompt(*(_template(path, key, content[key]) for key in keys))
    raise UserError(f"judge prompt {path} is no JSON object with the keys 'system' and 'user'. See docs/judge.md.")


def _template(path: Path, key: str, value: Any) -> str:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"judge prompt {path}: {key!r} is {value!r}; it must be a string or a list of lines.")
    return "\n".join(lines)
