"""Pictures that nothing was trained on, with exact labels: what the micro world has in place of raters."""

from __future__ import annotations

import numpy as np

from palimpsest.world.mixture import training_scene
from palimpsest.world.questions import is_readable
from palimpsest.world.render import render_all
from palimpsest.world.scene import Scene, labels_of
from palimpsest.world.vocab import THEMES

# Apart from the streams of the training pools and of the gates.
STREAM = 977


def held_out(count: int, seed: int) -> tuple[np.ndarray, list[dict[str, bool | None]]]:
    """Renders uint8 [count, 64, 64, 3] and, per render, theme -> whether it is shown; None where a glitch of the whole picture hides
    what is there. The first ones of a larger count are those of a smaller."""
    rng = np.random.default_rng([seed, STREAM])
    scenes = [training_scene(rng) for _ in range(count)]
    return render_all(scenes), [truth(scene) for scene in scenes]


def truth(scene: Scene) -> dict[str, bool | None]:
    """Theme -> whether the scene shows it, None where that cannot be seen."""
    shown = labels_of(scene).themes
    return {theme: shown[theme] if is_readable(scene, theme) else None for theme in THEMES}
