"""Draws a layout: black on white, smoothed, as PNG."""

from __future__ import annotations

import functools
import io

from PIL import Image, ImageDraw, ImageFont

from perception_r1_jax.data.geometry_world.layout import FONT, SIDE, Drawing

FINER = 3
"""Strokes are drawn so many times as large and then averaged."""


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=FONT * FINER)


def render(drawing: Drawing) -> bytes:
    """The picture, SIDE pixels wide and high, encoded."""
    image = Image.new("L", (SIDE * FINER, SIDE * FINER), 255)
    canvas = ImageDraw.Draw(image)
    for start, end in (*drawing.lines, *drawing.marks):
        canvas.line((*_fine(start), *_fine(end)), fill=0, width=FINER)
    for center, radius in drawing.circles:
        canvas.ellipse(_around(center, radius), outline=0, width=FINER)
    for center, radius, start, end in drawing.arcs:
        canvas.arc(_around(center, radius), start, end, fill=0, width=FINER)
    for dot in drawing.dots:
        canvas.ellipse(_around(dot, 1.3), fill=0)
    for text, center in drawing.texts:
        canvas.text(_fine(center), text, fill=0, font=_font(), anchor="mm")
    return _png(image.reduce(FINER).convert("RGB"))


def _fine(point):
    return point[0] * FINER, point[1] * FINER


def _around(center, radius):
    (x, y), radius = _fine(center), radius * FINER
    return x - radius, y - radius, x + radius, y + radius


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
