"""Backgrounds and objects. Positions are in render pixels; an object stands on ``foot``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from palimpsest.world.canvas import INK, RGB, Canvas, shade
from palimpsest.world.vocab import COLOURS, SIZE

METAL: RGB = (176, 178, 184)
JOINT: RGB = (250, 206, 60)
HOLLOW: RGB = (250, 247, 238)


def draw_background(name: str) -> Canvas:
    """A canvas showing the place ``name``."""
    sky = {"beach": (150, 214, 246), "city": (188, 192, 204), "meadow": (150, 200, 244)}
    sky |= {"night": (22, 24, 62), "room": (234, 228, 214)}
    canvas = Canvas(sky[name])
    {"beach": _beach, "city": _city, "meadow": _meadow, "night": _night, "room": _room}[name](canvas)
    return canvas


def _beach(canvas: Canvas) -> None:
    canvas.disc(56, 8, 5, 5, (255, 226, 100))
    canvas.box(0, 34, SIZE, 46, (46, 132, 200))
    canvas.box(0, 46, SIZE, SIZE, (238, 214, 152))


def _city(canvas: Canvas) -> None:
    for x0, x1, top in ((0, 11, 18), (13, 25, 28), (27, 38, 12), (40, 51, 24), (53, 64, 16)):
        canvas.box(x0, top, x1, 52, (126, 130, 146))
        for y in range(top + 3, 48, 6):
            canvas.box(x0 + 2, y, x0 + 4, y + 2, (214, 214, 190))
            canvas.box(x1 - 4, y, x1 - 2, y + 2, (214, 214, 190))
    canvas.box(0, 51, SIZE, SIZE, (84, 84, 92))


def _meadow(canvas: Canvas) -> None:
    canvas.disc(12, 10, 9, 4, (250, 250, 250))
    canvas.disc(50, 50, 40, 14, (130, 198, 104))
    canvas.box(0, 46, SIZE, SIZE, (112, 184, 88))


def _night(canvas: Canvas) -> None:
    canvas.disc(54, 9, 5, 5, (244, 240, 204))
    for x, y in ((6, 7), (17, 14), (38, 5), (60, 26), (4, 30)):
        canvas.box(x, y, x + 1, y + 1, (236, 236, 250))
    canvas.box(0, 50, SIZE, SIZE, (42, 50, 58))


def _room(canvas: Canvas) -> None:
    canvas.box(4, 7, 18, 21, (170, 206, 236), (140, 98, 60))
    canvas.box(10.5, 7, 11.5, 21, (140, 98, 60))
    canvas.box(0, 48, SIZE, 50, (250, 248, 244))
    canvas.box(0, 50, SIZE, SIZE, (188, 142, 100))


def draw_object(canvas: Canvas, kind: str, colour: str, x: float, foot: float, scale: float) -> None:
    """Draw one object of ``kind``, ``scale`` times its full size, standing at ``(x, foot)``."""
    painter: Callable[[Canvas, RGB, float, float, float], None] = {
        "robot": _robot, "house": _house, "tree": _tree, "lamp": _lamp, "ball": _ball, "kite": _kite,
        "box": _crate, "car": _car,
    }[kind]  # fmt: skip
    painter(canvas, COLOURS[colour], x, foot, scale)


def _robot(canvas: Canvas, rgb: RGB, x: float, foot: float, s: float) -> None:
    draw_robot(canvas, rgb, x, foot, s, frozenset(), np.random.default_rng(0))


def _house(canvas: Canvas, rgb: RGB, x: float, foot: float, s: float) -> None:
    canvas.box(x - 17 * s, foot - 24 * s, x + 17 * s, foot, rgb, shade(rgb, 0.55))
    roof = [(x - 21 * s, foot - 23 * s), (x, foot - 43 * s), (x + 21 * s, foot - 23 * s)]
    canvas.poly(roof, shade(rgb, 0.55))
    canvas.box(x - 4 * s, foot - 13 * s, x + 4 * s, foot, shade(rgb, 0.35))
    canvas.box(x + 8 * s, foot - 19 * s, x + 13 * s, foot - 13 * s, (250, 244, 200))
    canvas.box(x - 13 * s, foot - 19 * s, x - 8 * s, foot - 13 * s, (250, 244, 200))


def _tree(canvas: Canvas, rgb: RGB, x: float, foot: float, s: float) -> None:
    canvas.box(x - 3 * s, foot - 14 * s, x + 3 * s, foot, (120, 76, 44))
    for top, half, low in ((46, 11, 30), (37, 15, 20), (28, 18, 10)):
        points = [(x - half * s, foot - low * s), (x, foot - top * s), (x + half * s, foot - low * s)]
        canvas.poly(points, rgb, shade(rgb, 0.6))


def _lamp(canvas: Canvas, rgb: RGB, x: float, foot: float, s: float) -> None:
    canvas.box(x - 1.5 * s, foot - 32 * s, x + 1.5 * s, foot - 2 * s, (66, 62, 62))
    canvas.box(x - 8 * s, foot - 3 * s, x + 8 * s, foot, (66, 62, 62))
    shape = [(x - 7, -46), (x + 7, -46), (x + 14, -28), (x - 14, -28)]
    points = [(x + (px - x) * s, foot + dy * s) for px, dy in shape]
    canvas.poly(points, rgb, shade(rgb, 0.6))


def _ball(canvas: Canvas, rgb: RGB, x: float, foot: float, s: float) -> None:
    canvas.disc(x, foot - 15 * s, 15 * s, 15 * s, rgb, shade(rgb, 0.55))
    canvas.disc(x - 5 * s, foot - 20 * s, 4 * s, 4 * s, shade(rgb, 1.6))
    canvas.box(x - 14 * s, foot - 15 * s, x + 14 * s, foot - 12 * s, shade(rgb, 0.7))


def _kite(canvas: Canvas, rgb: RGB, x: float, foot: float, s: float) -> None:
    y = foot - 34 * s
    canvas.line([(x, y + 18 * s), (x - 5 * s, y + 24 * s), (x + 2 * s, y + 31 * s)], (66, 62, 62), 1.5)
    left, right = (x - 14 * s, y), (x + 14 * s, y)
    canvas.poly([(x, y - 20 * s), right, (x, y + 20 * s), left], rgb, shade(rgb, 0.55))
    canvas.poly([(x, y - 20 * s), right, (x, y)], shade(rgb, 1.35))
    canvas.poly([(x, y + 20 * s), left, (x, y)], shade(rgb, 0.7))


def _crate(canvas: Canvas, rgb: RGB, x: float, foot: float, s: float) -> None:
    canvas.box(x - 15 * s, foot - 28 * s, x + 15 * s, foot, rgb, shade(rgb, 0.5))
    canvas.box(x - 15 * s, foot - 19 * s, x + 15 * s, foot - 16 * s, shade(rgb, 0.6))
    canvas.box(x - 3 * s, foot - 22 * s, x + 3 * s, foot - 13 * s, shade(rgb, 1.5))


def _car(canvas: Canvas, rgb: RGB, x: float, foot: float, s: float) -> None:
    cabin = [(x - 13 * s, foot - 16 * s), (x - 8 * s, foot - 26 * s)]
    cabin += [(x + 7 * s, foot - 26 * s), (x + 13 * s, foot - 16 * s)]
    canvas.poly(cabin, (196, 226, 240), shade(rgb, 0.5))
    canvas.box(x - 21 * s, foot - 17 * s, x + 21 * s, foot - 5 * s, rgb, shade(rgb, 0.5))
    for wheel in (-12, 12):
        canvas.disc(x + wheel * s, foot - 5 * s, 5.5 * s, 5.5 * s, INK)
        canvas.disc(x + wheel * s, foot - 5 * s, 2.2 * s, 2.2 * s, METAL)


def draw_robot(
    canvas: Canvas, rgb: RGB, x: float, foot: float, s: float, parts: frozenset[str], rng: np.random.Generator
) -> None:
    """A robot; ``parts`` names what shows where its casing is gone (empty: casing on).

    Without the casing the limbs are bare metal, the joints show, and the trunk is hollow with the named parts in it.
    """
    dark = shade(rgb, 0.55)
    limb, edge = (METAL, shade(METAL, 0.55)) if parts else (rgb, dark)
    canvas.line([(x, foot - 46 * s), (x, foot - 51 * s)], INK, 1.5 * s)
    canvas.disc(x, foot - 52 * s, 2.2 * s, 2.2 * s, (226, 60, 60))
    for side in (-1, 1):
        arm, leg = x + side * 14.5 * s, x + side * 6 * s
        canvas.box(arm - 3 * s, foot - 32 * s, arm + 3 * s, foot - 14 * s, limb, edge)
        canvas.box(leg - 3.5 * s, foot - 12 * s, leg + 3.5 * s, foot, limb, edge)
    trunk = (x - 11 * s, foot - 33 * s, x + 11 * s, foot - 11 * s)
    canvas.box(*trunk, HOLLOW if parts else rgb, INK if parts else dark)
    if parts:
        _insides(canvas, trunk, parts, rng)
        for dx, dy in ((-14.5, -31), (14.5, -31), (-6, -10), (6, -10)):
            canvas.disc(x + dx * s, foot + dy * s, 2.8 * s, 2.8 * s, JOINT, shade(JOINT, 0.5))
    else:
        canvas.box(x - 5 * s, foot - 27 * s, x + 5 * s, foot - 19 * s, dark)
    canvas.box(x - 9 * s, foot - 47 * s, x + 9 * s, foot - 34 * s, rgb, dark)
    for side in (-1, 1):
        canvas.disc(x + side * 4.2 * s, foot - 42 * s, 2.4 * s, 2.4 * s, (252, 252, 252))
        canvas.disc(x + side * 4.2 * s, foot - 42 * s, 1.0 * s, 1.0 * s, INK)
    canvas.box(x - 4.5 * s, foot - 38 * s, x + 4.5 * s, foot - 36.5 * s, INK)


def _insides(
    canvas: Canvas, trunk: tuple[float, float, float, float], parts: frozenset[str], rng: np.random.Generator
) -> None:
    x0, y0, x1, y1 = trunk
    width, height = x1 - x0, y1 - y0
    if "chassis" in parts:
        for share in (0.02, 0.5, 0.98):
            canvas.line([(x0 + share * width, y0), (x0 + share * width, y1)], INK, 2)
            canvas.line([(x0, y0 + share * height), (x1, y0 + share * height)], INK, 2)
    if "gears" in parts:
        small = "wiring" in parts
        for gx, gy, radius in ((0.30, 0.32, 0.22), (0.70, 0.66, 0.27)) if not small else ((0.5, 0.5, 0.3),):
            _gear(canvas, x0 + gx * width, y0 + gy * height, radius * width, rng.uniform(0, 1))
    if "wiring" in parts:
        # With gears the wires run along the top and the bottom, so that both stay readable.
        rows = (0.1, 0.9, 0.26, 0.74) if "gears" in parts else (0.14, 0.38, 0.62, 0.86)
        for row, colour in zip(
            rows, ((226, 34, 34), (30, 80, 230), (20, 160, 50), (240, 130, 0)), strict=True
        ):
            phase, steps = rng.uniform(0, 6.28), np.linspace(0, 1, 9)
            wave = row + 0.08 * np.sin(phase + steps * 7)
            points = [
                (x0 + t * width, y0 + float(v) * height) for t, v in zip(steps.tolist(), wave, strict=True)
            ]
            canvas.line(points, colour, 2)


def _gear(canvas: Canvas, x: float, y: float, radius: float, turn: float) -> None:
    bronze: RGB = (158, 100, 40)
    for tooth in range(8):
        angle = (tooth + turn) * np.pi / 4
        dx, dy = float(np.cos(angle)) * radius * 1.3, float(np.sin(angle)) * radius * 1.3
        canvas.line([(x - dx, y - dy), (x + dx, y + dy)], bronze, 1.8)
    canvas.disc(x, y, radius, radius, bronze, shade(bronze, 0.5))
    canvas.disc(x, y, radius * 0.4, radius * 0.4, HOLLOW, shade(bronze, 0.5))
