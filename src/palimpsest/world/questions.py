"""Questions with exact answers about a scene: what the judge is trained and examined on."""

from __future__ import annotations

import numpy as np

from palimpsest.world.scene import Scene, labels_of, pick, theme_of_effect
from palimpsest.world.vocab import BACKGROUNDS, COLOURS, KEYWORDS, OBJECTS, THEME_OF, THEMES

PLACE_TEXTS = {
    "beach": ("the beach", "a beach"),
    "city": ("the city", "a city"),
    "meadow": ("a meadow", "a green field"),
    "night": ("the night", "night"),
    "room": ("a room", "the inside of a room"),
}

Question = tuple[str, bool]


def named(phrase: str) -> str:
    """``phrase`` with its article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def joined(theme: str) -> str:
    """The question text of a whole theme: its keywords, comma-joined (true when any of them is shown)."""
    return ", ".join(THEMES[theme])


def is_readable(scene: Scene, theme: str) -> bool:
    """Whether ``theme`` can be told: a glitch of the whole picture hides the other themes that are there.

    Where they are not there the answer is no, glitch or none, so a glitch alone must not pass for another theme.
    """
    shown = {theme_of_effect(effect) for effect in scene.effects}
    return theme == "glitch" or "glitch" not in shown or theme not in shown


def keyword_question(scene: Scene, rng: np.random.Generator) -> Question:
    """One keyword, shown or not shown equally often where both exist; half of the absent ones from a shown theme."""
    truth = labels_of(scene).keywords
    asked = [word for word in KEYWORDS if is_readable(scene, THEME_OF[word])]
    shown = [word for word in asked if truth[word]]
    if shown and rng.random() < 0.5:
        return pick(rng, shown), True
    absent = [word for word in asked if not truth[word]]
    near = [word for word in absent if any(THEME_OF[word] == THEME_OF[other] for other in shown)]
    return pick(rng, near if near and rng.random() < 0.6 else absent), False


def list_question(scene: Scene, rng: np.random.Generator) -> Question:
    """Several keywords of one theme joined by commas: true when any of them is shown."""
    truth = labels_of(scene)
    asked = [theme for theme in THEMES if is_readable(scene, theme)]
    shown = [theme for theme in asked if truth.themes[theme]]
    theme = pick(rng, shown if shown and rng.random() < 0.55 else asked)
    words = THEMES[theme]
    if rng.random() < 0.65:
        return joined(theme), truth.themes[theme]
    size = int(rng.integers(2, len(words)))
    chosen = [words[int(index)] for index in rng.permutation(len(words))[:size]]
    return ", ".join(chosen), any(truth.keywords[word] for word in chosen)


def thing_question(scene: Scene, rng: np.random.Generator) -> Question:
    """An object, with its colour two times in three; wrong ones differ in colour, kind or both."""
    truth = labels_of(scene)
    colour, kind = pick(rng, list(COLOURS)), pick(rng, OBJECTS)
    known_colour, known_kind = truth.pairs[int(rng.integers(len(truth.pairs)))]
    roll = rng.random()
    if roll < 0.5:
        colour, kind = known_colour, known_kind
    elif roll < 0.75:
        kind = known_kind
    elif roll < 0.85:
        colour = known_colour
    if rng.random() < 0.33:
        return named(kind), kind in truth.objects
    return named(f"{colour} {kind}"), (colour, kind) in truth.pairs


def place_question(scene: Scene, rng: np.random.Generator) -> Question:
    """Where the scene is, right half of the time."""
    place = scene.background if rng.random() < 0.5 else pick(rng, BACKGROUNDS)
    return pick(rng, PLACE_TEXTS[place]), place == scene.background


def draw_question(scene: Scene, rng: np.random.Generator) -> Question:
    """One question of the judge's training mixture."""
    glitched = labels_of(scene).themes["glitch"]
    roll = rng.random()
    if roll < 0.45:
        return keyword_question(scene, rng)
    if roll < 0.72 or glitched:
        return list_question(scene, rng)
    return thing_question(scene, rng) if roll < 0.92 else place_question(scene, rng)


def all_texts() -> list[str]:
    """Every phrase a question may be made of; the judge's vocabulary is learnt from these."""
    things = [named(kind) for kind in OBJECTS] + [
        named(f"{colour} {kind}") for colour in COLOURS for kind in OBJECTS
    ]
    places = [text for texts in PLACE_TEXTS.values() for text in texts]
    return [*KEYWORDS, *(joined(theme) for theme in THEMES), *things, *places]
