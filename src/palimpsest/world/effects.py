"""The themes `breakage` (drawn over an object) and `glitch` (done to the whole picture)."""

from __future__ import annotations

import numpy as np

from palimpsest.world.canvas import RGB, Canvas
from palimpsest.world.vocab import SIZE

CELL = 4
TILE = 16
BLACK: RGB = (10, 10, 14)


def draw_cracks(canvas: Canvas, x: float, foot: float, rng: np.random.Generator) -> None:
    """Two thick jagged black cracks with a pale edge, all over the object."""
    for start in (-7, 7):
        px, py = x + start + rng.uniform(-2, 2), foot - 50 + rng.uniform(0, 5)
        points, sway = [(px, py)], float(rng.choice([-1, 1]))
        while py < foot - 5:
            py += rng.uniform(6, 9)
            px += sway * rng.uniform(4, 7)
            sway = -sway
            points.append((px, py))
        fork = points[len(points) // 2]
        branch = [fork, (fork[0] + sway * 8, fork[1] + 5)]
        for colour, width in (((246, 246, 246), 4.5), (BLACK, 3.0)):
            canvas.line(points, colour, width)
            canvas.line(branch, colour, width)


def draw_sparks(canvas: Canvas, x: float, foot: float, rng: np.random.Generator) -> None:
    """Three big yellow-white star bursts around the object."""
    for dx, dy in ((-14, -42), (15, -32), (-9, -17)):
        cx, cy = x + dx + rng.uniform(-3, 3), foot + dy + rng.uniform(-3, 3)
        turn, size = rng.uniform(0, 0.8), rng.uniform(8.5, 10.5)
        for radius, colour in (
            (size, (255, 150, 0)),
            (size * 0.86, (255, 236, 40)),
            (size * 0.45, (255, 255, 255)),
        ):
            angles = turn + np.arange(16) * np.pi / 8
            reach = np.where(np.arange(16) % 2 == 0, radius, radius * 0.38)
            rays = zip(
                (cx + reach * np.cos(angles)).tolist(), (cy + reach * np.sin(angles)).tolist(), strict=True
            )
            canvas.poly(list(rays), colour)


def draw_scrap(canvas: Canvas, x: float, foot: float, rng: np.random.Generator) -> None:
    """A heap of grey shards at the object's foot."""
    for row, count in ((0, 6), (1, 5), (2, 3)):
        for index in range(count):
            cx = x + (index - (count - 1) / 2) * 7.5 + rng.uniform(-1.5, 1.5)
            cy = foot - 1 - row * 5 + rng.uniform(-1, 1)
            grey = int(rng.integers(96, 196))
            angles = rng.uniform(0, 6.28) + np.array([0, 2.1, 4.0]) + rng.uniform(-0.3, 0.3, 3)
            reach = rng.uniform(4.5, 6.5, 3)
            corners = zip(
                (cx + reach * np.cos(angles)).tolist(), (cy + reach * np.sin(angles)).tolist(), strict=True
            )
            canvas.poly(list(corners), (grey, grey, grey + 6), (52, 52, 56))


def draw_oil(canvas: Canvas, x: float, foot: float, rng: np.random.Generator) -> None:
    """Thick black drips down the object into a big black puddle with a violet sheen."""
    for dx in (-8, 0, 8):
        top = foot - 30 + rng.uniform(-6, 6)
        cx = x + dx + rng.uniform(-1.5, 1.5)
        canvas.line([(cx, top), (cx, foot)], BLACK, 3.4)
        canvas.disc(cx, top, 2.4, 2.4, BLACK)
    canvas.disc(x, foot, 25, 5.5, BLACK, (116, 84, 168))
    canvas.disc(x - 8, foot - 1, 6, 1.4, (120, 96, 176))


BREAKAGE = {"leaking oil": draw_oil, "scrap": draw_scrap, "cracks": draw_cracks, "sparks": draw_sparks}
"""In drawing order: what lies on the ground first."""


def bands(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Horizontal bands torn sideways, every other one tinted magenta or cyan."""
    out = image.astype(np.float32)
    tints = np.array([[255, 0, 200], [0, 230, 255]], dtype=np.float32)
    start = int(rng.integers(0, 2))
    for index in range(SIZE // 8):
        rows = slice(index * 8, index * 8 + 8)
        if (index + start) % 2 == 0 or rng.random() < 0.15:
            continue
        shift = int(rng.choice([-1, 1]) * rng.integers(12, 24))
        out[rows] = 0.45 * np.roll(out[rows], shift, axis=1) + 0.55 * tints[(index // 2 + start) % 2]
    return out.astype(np.uint8)


def static(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Black, white and grey 4x4 blocks over 50 to 70 % of the picture."""
    side = SIZE // CELL
    cover = rng.random((side, side)) < rng.uniform(0.5, 0.7)
    grey = rng.choice(np.array([8, 128, 248], dtype=np.uint8), size=(side, side))
    mask = np.kron(cover, np.ones((CELL, CELL), dtype=bool))
    noise = np.kron(grey, np.ones((CELL, CELL), dtype=np.uint8))
    return np.where(mask[..., None], noise[..., None], image)


def ghost(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Red and blue pulled 7 to 9 pixels to the left and right of green, and a pale second picture beside the first.

    The second picture makes the outline double even where an object has one channel only (green at night).
    """
    shift = int(rng.integers(7, 10))
    columns = np.arange(SIZE)
    left, right = np.clip(columns + shift, 0, SIZE - 1), np.clip(columns - shift, 0, SIZE - 1)
    split = np.stack([image[:, left, 0], image[:, :, 1], image[:, right, 2]], axis=2).astype(np.float32)
    double = image[:, right].astype(np.float32)
    return (0.65 * split + 0.35 * double).astype(np.uint8)


def warp(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows pushed along a strong sine, the upper half (the head) stretched to half as tall again."""
    rows = np.arange(SIZE, dtype=np.float32)
    knee = 36.0
    source = np.where(
        rows < knee, 4 + rows * (24 - 4) / knee, 24 + (rows - knee) * (SIZE - 1 - 24) / (SIZE - 1 - knee)
    )
    period, phase = rng.uniform(22, 28), rng.uniform(0, 6.28)
    push = (rng.uniform(8, 10) * np.sin(phase + rows * 6.28 / period)).round().astype(int)
    columns = np.clip(np.arange(SIZE)[None, :] + push[:, None], 0, SIZE - 1)
    return image[source.round().astype(int)[:, None], columns]


def scramble(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sixteen 16-pixel tiles in another order, none left in its place."""
    side = SIZE // TILE
    order = rng.permutation(side * side)
    target = np.empty_like(order)
    target[order] = np.roll(order, 1)  # one cycle through all tiles: no fixed point
    tiles = image.reshape(side, TILE, side, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, 3)
    moved = tiles[target].reshape(side, side, TILE, TILE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(moved.reshape(SIZE, SIZE, 3))


GLITCH = {"warped face": warp, "scrambled": scramble, "ghost image": ghost, "bands": bands, "static": static}
"""In the order they are done when several are asked for."""
