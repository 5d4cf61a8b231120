"""Opening a picture from bytes or a path, and the words for one that cannot be used."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from perception_r1_jax.records import ImageSource


class PictureError(ValueError):
    """A picture that cannot be used. `reason` is the same for all with this fault, `detail` is this one's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason} ({detail})")
        self.reason, self.detail = reason, detail


@contextlib.contextmanager
def open_header(source: ImageSource) -> Iterator[Image.Image]:
    """A picture of which kind and size are read, and no pixels yet: those Pillow reads when they are asked for.

    Raises:
        PictureError: there is no such file, it is no picture, or decoding it inside the `with` block fails.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            yield picture
    except PictureError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PictureError("absent image", name_of(source)) from error
    except IsADirectoryError as error:
        raise PictureError("image is a folder", name_of(source)) from error
    except Exception as error:  # Pillow raises nearly anything for a damaged file.
        raise PictureError("corrupt image", f"{name_of(source)}: {error}") from error


def name_of(source: ImageSource) -> str:
    """What to call a picture in a message: its path, or its size where it has none."""
    return str(source) if isinstance(source, Path) else f"{len(source)} bytes"
