"""A drawing surface twice as fine as the render, so that edges come out smooth."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from palimpsest.world.vocab import SIZE

SCALE = 2
RGB = tuple[int, int, int]
INK: RGB = (22, 22, 26)


def shade(colour: RGB, factor: float) -> RGB:
    """``colour`` made darker (factor < 1) or lighter (factor > 1, towards white)."""
    if factor <= 1:
        return tuple(int(value * factor) for value in colour)  # type: ignore[return-value]
    return tuple(int(value + (255 - value) * (factor - 1)) for value in colour)  # type: ignore[return-value]


class Canvas:
    """Draws in render pixels on an image ``SCALE`` times as fine."""

    def __init__(self, fill: RGB) -> None:
        self.image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), fill)
        self.pen = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, outline: RGB | None = None) -> None:
        """Filled rectangle."""
        self.pen.rectangle([v * SCALE for v in (x0, y0, x1, y1)], fill=fill, outline=outline, width=SCALE)

    def disc(self, x: float, y: float, rx: float, ry: float, fill: RGB, outline: RGB | None = None) -> None:
        """Filled ellipse around (x, y)."""
        box = [v * SCALE for v in (x - rx, y - ry, x + rx, y + ry)]
        self.pen.ellipse(box, fill=fill, outline=outline, width=SCALE)

    def poly(self, points: list[tuple[float, float]], fill: RGB, outline: RGB | None = None) -> None:
        """Filled polygon."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.pen.polygon(scaled, fill=fill, outline=outline, width=SCALE)

    def line(self, points: list[tuple[float, float]], fill: RGB, width: float) -> None:
        """Polyline of ``width`` render pixels."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.pen.line(scaled, fill=fill, width=max(1, round(width * SCALE)), joint="curve")

    def array(self) -> np.ndarray:
        """The picture as uint8 ``[SIZE, SIZE, 3]``."""
        return np.asarray(self.image.reduce(SCALE), dtype=np.uint8)
