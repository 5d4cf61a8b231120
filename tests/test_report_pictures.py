"""Pictures in the page: whole, sharp, and named where they have gone."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from perception_r1_jax.report.pictures import embed


def encode(width: int, height: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def decode(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_small_picture_keeps_its_pixels_and_is_shown_at_a_whole_multiple():
    source = encode(112, 84)
    (picture,) = embed([source])
    assert (picture.width, picture.height) == (224, 168)
    np.testing.assert_array_equal(np.asarray(decode(picture.uri)), np.asarray(Image.open(io.BytesIO(source))))


def test_a_large_picture_is_reduced():
    (picture,) = embed([encode(1280, 640, "JPEG")])
    assert decode(picture.uri).size == (picture.width, picture.height) == (640, 320)


def test_a_picture_that_has_gone_or_is_damaged(tmp_path):
    gone, damaged = embed([tmp_path / "gone.png", encode(112, 112)[:500]])
    assert (gone.uri, damaged.uri) == ("", "")
    assert "gone.png" in gone.missing
    assert "corrupt image" in damaged.missing
