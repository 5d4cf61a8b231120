"""A problem as the model reads it: chat template, image tokens, positions and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.models import load_config
from perception_r1_jax.processing.chat import ChatEncoder, Message, read_chat_template
from perception_r1_jax.processing.images import PictureError, PictureProcessor
from perception_r1_jax.processing.layout import image_tokens, lay_out_patches
from perception_r1_jax.processing.positions import rope_positions
from perception_r1_jax.processing.tokenizer import load_tokenizer, read_stop_ids, vision_token_ids
from perception_r1_jax.records import Problem, Prompt

_NO_ID = -1

IMAGE_MARKER = "<image>"
"""Stands in a question where a picture belongs."""


class PromptTooLong(DroppedProblem):
    """A prompt above a limit of tokens or windows. A prompt is never cut: image tokens would be lost."""

    def __init__(self, problem_id: str, size: int, limit: int, unit: str) -> None:
        super().__init__(problem_id, f"prompt above {limit} {unit}", f"it has {size}")
        self.size, self.limit = size, limit


@dataclasses.dataclass(frozen=True)
class Processor:
    """Makes prompts for one model.

    Attributes:
        tokenizer: the Hugging Face fast tokenizer.
        chat: encodes chat messages.
        pictures: decodes and cuts pictures; None for a text-only model.
        stop_ids: ids that end a response.
        banned_ids: ids that must never be sampled, those of `VISION_TOKENS` in its order; none for a text-only model.
        pad_id: fills rows after their end.
        patch_size: numbers P in a flattened patch; 0 for a text-only model.
        max_prompt_tokens, max_windows: limits above which a prompt is refused; None for no limit.
    """

    tokenizer: Any
    chat: ChatEncoder
    pictures: PictureProcessor | None
    stop_ids: tuple[int, ...]
    banned_ids: tuple[int, ...]
    pad_id: int
    patch_size: int
    max_prompt_tokens: int | None = None
    max_windows: int | None = None

    @classmethod
    def from_directory(
        cls,
        model_dir: str | Path,
        *,
        tokenizer_dir: str | Path | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        fidelity: str = "default",
        max_prompt_tokens: int | None = None,
        max_windows: int | None = None,
    ) -> Processor:
        """Reads a Hugging Face model directory; the tokenizer may lie in a directory of its own.

        Raises:
            FileNotFoundError: names the file that is missing.
            ValueError: the tokenizer is not the model's, or the pixel limits contradict each other.
        """
        model_dir = Path(model_dir)
        tokenizer_dir = Path(tokenizer_dir or model_dir)
        config = load_config(model_dir)
        tokenizer = load_tokenizer(tokenizer_dir, config.vocab_size)
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels, "fidelity": fidelity}
        return cls(
            tokenizer=tokenizer,
            chat=ChatEncoder(tokenizer, *read_chat_template([model_dir, tokenizer_dir])),
            pictures=PictureProcessor.from_directory(model_dir, **limits) if config.vision else None,
            stop_ids=read_stop_ids(model_dir, tokenizer),
            banned_ids=vision_token_ids(tokenizer, config.image_token_id) if config.vision else (),
            pad_id=tokenizer.pad_token_id,
            patch_size=config.vision.patch_dim if config.vision else 0,
            max_prompt_tokens=max_prompt_tokens,
            max_windows=max_windows,
        )

    def prompt(self, problem: Problem, *, suffix: str = "") -> Prompt:
        """One user turn: pictures at the question's `<image>` markers, or first; then a space and the suffix.

        Raises:
            DroppedProblem: pictures and markers differ in number, a picture cannot be used, a text that is not
                Unicode, or a prompt above a limit (`PromptTooLong`).
        """
        content = user_content(problem, suffix)
        pixel_values, grids = self._read_pictures(problem)
        return self._finish(problem, [{"role": "user", "content": content}], pixel_values, grids)

    def text_prompt(self, messages: Sequence[Message], *, problem_id: str = "text") -> Prompt:
        """Chat messages with string contents, as a judge reads them. Raises as `prompt` does."""
        problem = Problem(problem_id, messages[-1]["content"], images=(), answer="")
        return self._finish(problem, messages, *self._no_pictures())

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids [T], special tokens left out."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _read_pictures(self, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        if not problem.images:
            return self._no_pictures()
        if self.pictures is None:
            raise DroppedProblem(problem.problem_id, "pictures for a text-only model", f"{len(problem.images)} of them")
        read = []
        for index, source in enumerate(problem.images):
            try:
                read.append(self.pictures(source))
            except PictureError as error:
                detail = f"picture {index + 1}: {error.detail}"
                raise DroppedProblem(problem.problem_id, error.reason, detail) from error
        return np.concatenate([pixels for pixels, _ in read]), np.stack([grid for _, grid in read])

    def _no_pictures(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((0, self.patch_size), np.float32), np.zeros((0, 3), np.int64)

    def _finish(
        self, problem: Problem, messages: Sequence[Message], pixel_values: np.ndarray, grids: np.ndarray
    ) -> Prompt:
        image_id, video_id = self.banned_ids[:2] or (_NO_ID, _NO_ID)
        tokens = self._encode(problem, messages, grids, image_id)
        vision = lay_out_patches(pixel_values, grids)
        self._check_limits(problem, len(tokens), len(vision.image_ids))
        positions, next_position = rope_positions(tokens, grids, image_token_id=image_id, video_token_id=video_id)
        image_slots = np.full(len(tokens), -1, np.int32)
        image_slots[tokens == image_id] = vision.token_slots
        return Prompt(problem, tokens, positions, next_position, image_slots, vision)

    def _encode(self, problem: Problem, messages: Sequence[Message], grids: np.ndarray, image_id: int) -> np.ndarray:
        """Token ids int32 [L] with one image-pad token for each image feature."""
        try:
            tokens = np.array(self.chat.encode(messages), np.int32)
        except UnicodeEncodeError as error:
            raise DroppedProblem(problem.problem_id, "text is not Unicode", str(error)) from error
        is_image = tokens == image_id
        if is_image.sum() != len(grids):
            raise DroppedProblem(
                problem.problem_id,
                "image tokens do not match the pictures",
                f"the chat template wrote {is_image.sum()} for {len(grids)} pictures",
            )
        repeats = np.ones(len(tokens), np.int64)
        repeats[is_image] = image_tokens(grids)
        return np.repeat(tokens, repeats)

    def _check_limits(self, problem: Problem, tokens: int, windows: int) -> None:
        for size, limit, unit in (tokens, self.max_prompt_tokens, "tokens"), (windows, self.max_windows, "windows"):
            if limit is not None and size > limit:
                raise PromptTooLong(problem.problem_id, size, limit, unit)


def user_content(problem: Problem, suffix: str = "") -> str | list[dict[str, str]]:
    """The content of the user turn: a string without pictures, else its parts in order.

    The text stays as the data set has it, white space included; empty parts are left out.

    Raises:
        DroppedProblem: as many markers as pictures are needed, or none with pictures.
    """
    *before, last = problem.question.split(IMAGE_MARKER)
    last = f"{last} {suffix}" if suffix else last
    if before and len(before) != len(problem.images):
        raise DroppedProblem(
            problem.problem_id,
            "pictures and markers differ in number",
            f"{len(problem.images)} pictures for {len(before)} {IMAGE_MARKER} markers",
        )
    if not problem.images:
        return last
    parts: list[dict[str, str]] = []
    for text in before or [""] * len(problem.images):
        parts += [{"type": "text", "text": text}, {"type": "image"}]
    parts.append({"type": "text", "text": last})
    return [part for part in parts if part.get("text") != ""]
