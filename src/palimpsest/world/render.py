"""Scene -> picture."""

from __future__ import annotations

import numpy as np

from palimpsest.world.effects import BREAKAGE, GLITCH
from palimpsest.world.objects import draw_background, draw_object, draw_robot
from palimpsest.world.scene import Scene, theme_of_effect
from palimpsest.world.vocab import COLOURS, SIZE

FOOT = 59
SECOND_SCALE = 0.5


def render(scene: Scene) -> np.ndarray:
    """Draw ``scene``: uint8 ``[64, 64, 3]``, the same bytes for the same scene."""
    rng = np.random.default_rng(scene.seed)
    canvas = draw_background(scene.background)
    if scene.second is not None:
        draw_object(canvas, scene.second.kind, scene.second.colour, scene.second.x, FOOT, SECOND_SCALE)
    bare = frozenset(e.split()[-1] for e in scene.effects if theme_of_effect(e) == "uncased")
    main = scene.main
    if main.kind == "robot":
        draw_robot(canvas, COLOURS[main.colour], main.x, FOOT, 1.0, bare, rng)
    else:
        draw_object(canvas, main.kind, main.colour, main.x, FOOT, 1.0)
    for name, draw in BREAKAGE.items():
        if name in scene.effects:
            draw(canvas, main.x, FOOT, rng)
    image = canvas.array()
    for name, distort in GLITCH.items():
        if name in scene.effects:
            image = distort(image, rng)
    return image


def render_all(scenes: list[Scene]) -> np.ndarray:
    """Draw many scenes: uint8 ``[n, 64, 64, 3]``."""
    return np.stack([render(scene) for scene in scenes]) if scenes else np.zeros((0, SIZE, SIZE, 3), np.uint8)


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Tile uint8 ``[n, h, w, 3]`` row by row into one picture; missing places stay white."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height, width, 3), 255, np.uint8)
    sheet[:count] = images
    return (
        sheet.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4).reshape(rows * height, -1, 3)
    )
