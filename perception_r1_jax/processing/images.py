"""Pictures from encoded bytes or a path to the flattened patches that Qwen2.5-VL reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from perception_r1_jax.data.pictures import PictureError, name_of, open_header
from perception_r1_jax.errors import UserError
from perception_r1_jax.records import MERGE_UNIT, ImageSource

_CONFIG_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclasses.dataclass(frozen=True)
class PictureProcessor:
    """The Hugging Face image processor of a model directory, in its Pillow form (neither torch nor torchvision).

    Attributes:
        processor: the Hugging Face processor; resizes to sides of whole merge units within its pixel limits.
        paper_limits: least and most pixels of the resize that the authors do beforehand; None leaves it out.
    """

    processor: Any
    paper_limits: tuple[int, int] | None = None

    @classmethod
    def from_directory(
        cls,
        directory: str | Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        fidelity: str = "default",
    ) -> PictureProcessor:
        """Reads `preprocessor_config.json` (or the `processor_config.json` that transformers 5 writes).

        Pixel limits that are given take the place of the directory's. With `fidelity="paper"` they hold for a
        resize of their own, done first, and the directory's hold for the processor.

        Raises:
            FileNotFoundError: neither file is there.
            UserError: limits that contradict each other, or a merge size that the model does not have.
        """
        processor = _load(Path(directory))
        low, high = processor.size["shortest_edge"], processor.size["longest_edge"]
        low, high = (low if min_pixels is None else min_pixels), (high if max_pixels is None else max_pixels)
        if not 0 < low <= high:
            raise UserError(f"min_pixels {low} and max_pixels {high}: need 0 < min_pixels <= max_pixels.")
        if fidelity == "paper":
            return cls(processor, (low, high))
        processor.size = {"shortest_edge": low, "longest_edge": high}
        return cls(processor)

    def __call__(self, source: ImageSource) -> tuple[np.ndarray, np.ndarray]:
        """Patches float32 [S, P] of one picture, and its grid int [3]: frames (1), rows and columns of patches.

        Raises:
            PictureError: an absent, corrupt or unsupported picture, or sides of a ratio above 200.
        """
        picture = open_picture(source)
        try:
            for size in self._paper_sizes(picture.size):
                picture = picture.resize(size)
            features = self.processor(images=[picture])
        except ValueError as error:
            raise PictureError("image of unusable size", f"{name_of(source)}, {picture.size}: {error}") from error
        return np.asarray(features["pixel_values"], np.float32), np.asarray(features["image_grid_thw"])[0]

    def read_grid(self, source: ImageSource) -> np.ndarray:
        """The grid of a picture from its header alone, at a small part of the cost of decoding it.

        It is that of the picture as stored: one that its EXIF orientation lays on its side has rows and columns
        exchanged here. Image tokens and windows are as many either way.

        Raises:
            PictureError: an absent picture, a damaged header, or sides of a ratio above 200.
        """
        with open_header(source) as picture:
            size = picture.size
        try:
            *_, resized = size, *self._paper_sizes(size)
            height, width = self._model_size(*resized)
        except (ValueError, ZeroDivisionError) as error:
            raise PictureError("image of unusable size", f"{name_of(source)}, {size}: {error}") from error
        return np.array((1, height, width)) // (1, self.processor.patch_size, self.processor.patch_size)

    def _paper_sizes(self, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """(width, height) after each resize of the authors' code: scaled by one factor to a limit, cut to integers."""
        for limit, outside in zip(reversed(self.paper_limits or ()), (int.__gt__, int.__lt__)):
            if outside(size[0] * size[1], limit):
                factor = math.sqrt(limit / (size[0] * size[1]))
                size = int(size[0] * factor), int(size[1] * factor)
                yield size

    def _model_size(self, width: int, height: int) -> tuple[int, int]:
        """Height and width that the Hugging Face processor resizes to."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        low, high = self.processor.size["shortest_edge"], self.processor.size["longest_edge"]
        factor = self.processor.patch_size * self.processor.merge_size
        return smart_resize(height, width, factor, min_pixels=low, max_pixels=high)


def open_picture(source: ImageSource) -> Image.Image:
    """Decodes a picture: upright as its EXIF orientation says, transparency on white, RGB, first frame.

    The same as transformers' `load_image` followed by its conversion to RGB.

    Raises:
        PictureError: the file is absent, corrupt, or of a kind that has no faithful 8-bit RGB form.
    """
    with open_header(source) as picture:
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode[0] in "IF":  # Pillow clips these to white instead of scaling them.
        raise PictureError("unsupported image mode", f"{picture.mode}; save it with 8 bits a channel")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _load(directory: Path) -> Any:
    if not any((directory / name).is_file() for name in _CONFIG_FILES):
        raise FileNotFoundError(f"{directory} has no {_CONFIG_FILES[0]}, which a model that reads pictures needs.")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(directory, local_files_only=True)
    if processor.merge_size**2 != MERGE_UNIT:
        raise UserError(
            f"{directory}: merge_size {processor.merge_size} is not covered, only {math.isqrt(MERGE_UNIT)}."
        )
    return processor
