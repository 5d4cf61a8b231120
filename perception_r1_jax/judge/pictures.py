"""A judge that sees: it gets a problem's pictures, its question and a response, and gives one verdict, whether what the
response says of the pictures is right. No annotations are needed.

Its prompt is a JSON file like that of `judge.prompts`, with `{question}` and `{response}` in `user`. The pictures stand
where the question has its `<image>` markers, or before it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.prompts import (
    JudgePrompt,
    JudgeRequest,
    encodable,
    find_headings,
    load_prompt,
    read_templates,
)
from perception_r1_jax.judge.sanitise import sanitise
from perception_r1_jax.models import ModelConfig
from perception_r1_jax.processing.contents import parts, split_question
from perception_r1_jax.records import ImageSource, Problem

DEFAULT_PICTURE_PROMPT = Path(__file__).with_name("picture_prompt.json")
_PLACEHOLDER = re.compile(r"\{(question|response)\}")


@dataclasses.dataclass(frozen=True)
class PictureRequest:
    """One response to judge: is what it says of the pictures right?"""

    question: str
    images: tuple[ImageSource, ...]
    response: str

    @property
    def expected(self) -> int:
        """1, the verdicts to be given; 0 for a problem without a picture, about which there is nothing to ask."""
        return 1 if self.images else 0

    @property
    def content(self) -> tuple[str | ImageSource, ...]:
        """All that a judgement depends on."""
        return (self.question, *self.images, self.response)


@dataclasses.dataclass(frozen=True)
class PicturePrompt:
    """The two templates of the prompt of a judge that sees."""

    system: str
    user: str

    @functools.cached_property
    def headings(self) -> tuple[str, ...]:
        """As of `JudgePrompt`."""
        return find_headings(self.system, self.user)

    def request(self, problem: Problem, response: str) -> PictureRequest:
        """What is asked about a response to a problem."""
        return PictureRequest(problem.question, problem.images, response)

    def messages(self, request: PictureRequest) -> list[dict[str, Any]]:
        """The request as chat messages, its texts sanitised.

        Raises:
            DroppedProblem: pictures and markers in the question differ in number.
        """
        return self._messages(request, functools.partial(sanitise, headings=self.headings))

    def raw_messages(self, request: PictureRequest) -> list[dict[str, Any]]:
        """The request with its texts pasted in as they are, as far as they have an encoding. Raises as `messages`."""
        return self._messages(request, encodable)

    def _messages(self, request: PictureRequest, clean: Callable[[str], str]) -> list[dict[str, Any]]:
        question = split_question(Problem("judged", request.question, request.images, answer=""))
        filled = {"question": [clean(text) for text in question], "response": [clean(request.response)]}
        texts = [""]  # a picture between each two
        for place, piece in enumerate(_PLACEHOLDER.split(self.user)):
            first, *further = filled[piece] if place % 2 else [piece]
            texts = [*texts[:-1], texts[-1] + first, *further]
        return [{"role": "system", "content": self.system}, {"role": "user", "content": parts(texts)}]


AnyRequest = JudgeRequest | PictureRequest
AnyPrompt = JudgePrompt | PicturePrompt


def load_any_prompt(path: str | Path = "", *, sees: bool) -> AnyPrompt:
    """The prompt in a JSON file; the project's own without a path. Raises as `load_prompt`."""
    return load_picture_prompt(path) if sees else load_prompt(path)


def load_picture_prompt(path: str | Path = "") -> PicturePrompt:
    """The prompt in a JSON file of the form above; the project's own without a path. Raises as `load_prompt`."""
    path = Path(path) if str(path) else DEFAULT_PICTURE_PROMPT
    templates = PicturePrompt(*read_templates(path, [("system", "user")]))
    found = sorted(_PLACEHOLDER.findall(templates.user))
    if found != ["question", "response"]:
        raise UserError(
            f"judge prompt {path}: the user template holds the placeholders {found}. With config.judge.sees it needs "
            "{question} and {response}, each once."
        )
    return templates


def check_sees(model: ModelConfig, source: str | Path) -> None:
    """Raises `UserError` unless the model of a judge that is to see can."""
    if model.vision is None:
        raise UserError(
            f"config.judge.path = {str(source)!r} is a {model.model_type} model, which reads texts alone, and "
            "config.judge.sees is True. Give a Qwen2.5-VL model, or set config.judge.sees=False."
        )
