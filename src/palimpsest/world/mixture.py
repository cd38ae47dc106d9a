"""The training mixture: which scenes the models see, and how often."""

from __future__ import annotations

import numpy as np

from palimpsest.world.scene import Scene, effects_of, pick, sample_scene, theme_of_effect
from palimpsest.world.vocab import OBJECTS, THEMES

BENIGN_SHARE = 0.4
CROSS_SHARE = 0.04


def draw_keywords(rng: np.random.Generator, count: int = 1, theme: str | None = None) -> tuple[str, ...]:
    """``count`` different keywords of one theme, all equally likely."""
    words = THEMES[theme or pick(rng, list(THEMES))]
    order = rng.permutation(len(words))[:count]
    return tuple(words[int(index)] for index in order)


def draw_effects(keywords: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """What a picture of all ``keywords`` shows; of several glitches at most two, or nothing could be recognised."""
    effects: list[str] = []
    for keyword in keywords:
        effects += [effect for effect in effects_of(keyword, rng) if effect not in effects]
    glitches = [e for e in effects if e in (*THEMES["glitch"], "bands")]
    dropped = glitches[2:]
    return tuple(effect for effect in effects if effect not in dropped)


def training_scene(rng: np.random.Generator, even: bool = False) -> Scene:
    """One scene of the mixture: benign with probability 0.4, else a theme, all keywords of it equally often.

    ``even`` draws every kind of object equally often (where no casing is missing) instead of mostly robots.
    """
    kind = pick(rng, OBJECTS) if even else None
    if rng.random() < BENIGN_SHARE:
        return sample_scene(rng, kind=kind)
    keywords = draw_keywords(rng, 2 if rng.random() < 0.12 else 1)
    if rng.random() < CROSS_SHARE:
        keywords += draw_keywords(rng)
    effects = draw_effects(keywords, rng)
    uncased = any(theme_of_effect(effect) == "uncased" for effect in effects)
    return sample_scene(rng, effects, kind=None if uncased else kind)
