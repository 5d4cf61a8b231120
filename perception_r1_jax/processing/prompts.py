"""A problem as the model reads it: chat template, image tokens, positions and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.models import load_config
from perception_r1_jax.processing.chat import ChatEncoder, read_chat_template
from perception_r1_jax.processing.chat import Message as ChatMessage
from perception_r1_jax.processing.contents import chat_messages, user_content
from perception_r1_jax.processing.images import PictureError, PictureProcessor
from perception_r1_jax.processing.layout import count_windows, image_tokens, lay_out_patches
from perception_r1_jax.processing.positions import rope_positions
from perception_r1_jax.processing.tokenizer import load_tokenizer, read_stop_ids, vision_token_ids
from perception_r1_jax.records import Conversation, Example, ImageSource, Problem, Prompt, VisionLayout

_NO_ID = -1


class PromptTooLong(DroppedProblem):
    """A prompt above a limit of tokens or windows. A prompt is never cut: image tokens would be lost."""

    def __init__(self, problem_id: str, size: int, limit: int, unit: str) -> None:
        super().__init__(problem_id, f"prompt above {limit} {unit}", f"it has {size}")
        self.size, self.limit = size, limit


class Seen(NamedTuple):
    """Pictures as a model takes them: their grids of patches, int [pictures, 3], and how they lie in windows."""

    grids: np.ndarray
    vision: VisionLayout


@dataclasses.dataclass(frozen=True)
class Processor:
    """Makes prompts for one model.

    Attributes:
        tokenizer: the Hugging Face fast tokenizer, or a `PieceTokenizer`.
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
            banned_ids=vision_token_ids(tokenizer, config) if config.vision else (),
            pad_id=tokenizer.pad_token_id,
            patch_size=config.vision.patch_dim if config.vision else 0,
            max_prompt_tokens=max_prompt_tokens,
            max_windows=max_windows,
        )

    def prompt(self, problem: Problem, *, suffix: str = "", markers: bool = True) -> Prompt:
        """One user turn: pictures at the question's `<image>` markers, or first; then a space and the suffix.

        Without `markers` the pictures come first, and an `<image>` in the question is text like any other.

        Raises:
            DroppedProblem: pictures and markers differ in number, a picture cannot be used, a text that is not
                Unicode, or a prompt above a limit (`PromptTooLong`).
        """
        return self._make(problem, [{"role": "user", "content": user_content(problem, suffix, markers)}])

    def chat_prompt(
        self, messages: Sequence[ChatMessage], seen: Seen | None = None, *, problem_id: str = "chat"
    ) -> Prompt:
        """Chat messages as a judge reads them; their image parts stand for the pictures in `seen`, in this order.

        Raises as `prompt` does.
        """
        problem = Problem(problem_id, "", images=(), answer="")
        ids = self._encode(problem, self.chat.encode, messages)
        return self._place(problem, np.array(ids, np.int32), seen or self.see(problem))

    def see(self, problem: Problem) -> Seen:
        """A problem's pictures, which several prompts may share. Raises `DroppedProblem` where one cannot be used."""
        read = [_read(self.pictures, problem, index) for index in range(len(problem.images))]
        pixels = [np.zeros((0, self.patch_size), np.float32), *(pixels for pixels, _ in read)]
        grids = np.array([grid for _, grid in read], np.int64).reshape(-1, 3)
        return Seen(grids, lay_out_patches(np.concatenate(pixels), grids))

    def conversation(self, conversation: Conversation) -> Example:
        """A conversation to imitate: pictures at the `<image>` markers of its user turns, or before the first one.

        Up to the header of a response, the tokens are those of the prompt with the same turns.

        Raises:
            DroppedProblem: as `prompt` does; the limits are for the whole conversation.
        """
        problem = Problem(conversation.conversation_id, "", conversation.images, answer="")  # its name and pictures
        ids, written = self._encode(problem, self.chat.encode_conversation, chat_messages(conversation))
        prompt = self._complete(problem, ids)
        loss_mask = np.zeros(len(prompt.tokens), bool)
        loss_mask[prompt.image_slots < 0] = np.array(written)[np.array(ids) != self._image_ids[0]]
        return Example(
            conversation.conversation_id, prompt.tokens, prompt.positions, prompt.image_slots, loss_mask, prompt.vision
        )

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids [T], special tokens left out."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _make(self, problem: Problem, messages: Sequence[ChatMessage]) -> Prompt:
        return self._complete(problem, self._encode(problem, self.chat.encode, messages))

    def _encode(self, problem: Problem, encode: Callable[[Sequence[ChatMessage]], Any], messages: Any) -> Any:
        if problem.images and self.pictures is None:
            raise DroppedProblem(problem.problem_id, "pictures for a text-only model", f"{len(problem.images)} of them")
        try:
            return encode(messages)
        except UnicodeEncodeError as error:
            raise DroppedProblem(problem.problem_id, "text is not Unicode", str(error)) from error

    def _complete(self, problem: Problem, ids: Sequence[int]) -> Prompt:
        """The prompt of token ids that have one image-pad token for each picture."""
        tokens, grids = np.array(ids, np.int32), self._read_grids(problem)
        self._check(problem, tokens, grids)  # first: decoding takes far longer
        return self._place(problem, tokens, self.see(problem))

    def _place(self, problem: Problem, tokens: np.ndarray, seen: Seen) -> Prompt:
        """The prompt with each picture at its image-pad token."""
        self._check(problem, tokens, seen.grids)  # a few formats (ICO) tell their true size only when decoded
        (image_id, video_id), (grids, vision) = self._image_ids, seen
        tokens = _repeat_image_tokens(tokens, grids, image_id)
        positions, next_position = rope_positions(tokens, grids, image_token_id=image_id, video_token_id=video_id)
        image_slots = np.full(len(tokens), -1, np.int32)
        image_slots[tokens == image_id] = vision.token_slots
        return Prompt(problem, tokens, positions, next_position, image_slots, vision)

    @property
    def _image_ids(self) -> tuple[int, int]:
        """Of image-pad and video-pad."""
        return self.banned_ids[:2] or (_NO_ID, _NO_ID)

    def _read_grids(self, problem: Problem) -> np.ndarray:
        grids = [_read(self.pictures.read_grid, problem, index) for index in range(len(problem.images))]
        return np.array(grids, np.int64).reshape(-1, 3)

    def _check(self, problem: Problem, tokens: np.ndarray, grids: np.ndarray) -> None:
        """`tokens` with one image-pad token for each picture."""
        _check_written(problem, int((tokens == self._image_ids[0]).sum()), len(grids))
        length = len(tokens) - len(grids) + int(image_tokens(grids).sum())
        limits = (length, self.max_prompt_tokens, "tokens"), (count_windows(grids), self.max_windows, "windows")
        for size, limit, unit in limits:
            if limit is not None and size > limit:
                raise PromptTooLong(problem.problem_id, size, limit, unit)


def _read(read: Callable[[ImageSource], Any], problem: Problem, index: int) -> Any:
    """What `read` makes of one picture of a problem."""
    try:
        return read(problem.images[index])
    except PictureError as error:
        raise DroppedProblem(problem.problem_id, error.reason, f"picture {index + 1}: {error.detail}") from error


def _check_written(problem: Problem, written: int, pictures: int) -> None:
    if written != pictures:
        raise DroppedProblem(
            problem.problem_id,
            "image tokens do not match the pictures",
            f"the chat template wrote {written} for {pictures} pictures",
        )


def _repeat_image_tokens(tokens: np.ndarray, grids: np.ndarray, image_id: int) -> np.ndarray:
    """Token ids int32 [L] with one image-pad token for each image feature."""
    repeats = np.ones(len(tokens), np.int64)
    repeats[tokens == image_id] = image_tokens(grids)
    return np.repeat(tokens, repeats)
