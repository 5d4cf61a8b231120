"""A file of prompts: JSON lines with `prompt`, and optionally `images` (paths from the file's folder on) and `id`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perception_r1_jax.data.errors import DataError, DroppedProblem
from perception_r1_jax.data.json_lines import numbered_lines, parse_object
from perception_r1_jax.records import Problem

Name = str | int
"""A prompt's `id` as written; its line's number where it has none."""


def read_prompts(path: Path) -> dict[Name, Problem | DroppedProblem]:
    """The prompts of a file in its order, each as a problem, or why it is none. Its id, as text, is the problem's.

    Raises:
        DataError: the file has no line, or two lines one id.
        OSError: it cannot be read.
    """
    prompts: dict[Name, Problem | DroppedProblem] = {}
    seen: dict[str, int] = {}
    for number, line in numbered_lines(path):
        name, prompt = _read(number, line, path.parent)
        if str(name) in seen:
            raise DataError(
                f"{path}: lines {seen[str(name)]} and {number} both have the id {str(name)!r} (a line without one has "
                "its number). Draws and replies go by the id: give each prompt its own."
            )
        seen[str(name)] = number
        prompts[name] = prompt
    if not prompts:
        raise DataError(f"{path} holds no prompt: write one JSON object with a 'prompt' on each line.")
    return prompts


def _read(number: int, line: bytes, folder: Path) -> tuple[Name, Problem | DroppedProblem]:
    name: Name = number
    try:
        row = parse_object(line, str(number))
        name = _name(row, number)
        return name, _problem(row, str(name), folder)
    except DroppedProblem as dropped:
        return name, dropped


def _name(row: dict[str, Any], number: int) -> Name:
    name = row.get("id")
    if name is None:
        return number
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise DroppedProblem(str(number), "'id' is neither a text nor a whole number", repr(name))
    return name


def _problem(row: dict[str, Any], name: str, folder: Path) -> Problem:
    prompt, images = row.get("prompt"), row.get("images") or []
    if not isinstance(prompt, str):
        raise DroppedProblem(name, "'prompt' is not a text", repr(prompt) if "prompt" in row else "it is missing")
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise DroppedProblem(name, "'images' is not a list of paths", repr(images))
    return Problem(name, prompt, tuple(folder / image for image in images), answer="")
