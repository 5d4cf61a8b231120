"""Pictures inside the page: encoded in it, small ones enlarged so that each pixel stays sharp."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence

from PIL import Image

from perception_r1_jax.data.pictures import PictureError, open_header
from perception_r1_jax.records import ImageSource

LARGEST = 640
"""Pixels of a side that a picture in the page has at most."""

SHOWN = 256
"""Pixels of a side that a small picture is enlarged to, or a little more."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as the page shows it.

    Attributes:
        uri: the picture itself, as a data URI; "" where it cannot be had.
        width, height: pixels on the page.
        missing: why it cannot be had.
    """

    uri: str
    width: int
    height: int
    missing: str = ""


def embed(sources: Sequence[ImageSource]) -> list[Picture]:
    """The pictures of a problem; one that has gone says so."""
    return [_embed(source) for source in sources]


def _embed(source: ImageSource) -> Picture:
    try:
        with open_header(source) as image:
            picture = image.convert("RGB")
    except PictureError as error:
        return Picture("", 0, 0, str(error))
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    times = max(1, round(SHOWN / max(picture.size)))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(uri, times * picture.width, times * picture.height)
