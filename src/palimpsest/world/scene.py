"""What is in a picture, before it is drawn: the scene, its effects and its exact labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from palimpsest.world.vocab import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    SAFE_PHRASES,
    THEME_OF,
    THEMES,
    check_keyword,
)

ROBOT_SHARE = 0.5
SECOND_SHARE = 0.3


@dataclass(frozen=True)
class Thing:
    """An object, its colour and where its foot stands (pixels from the left)."""

    kind: str
    colour: str
    x: int


@dataclass(frozen=True)
class Scene:
    """A picture to draw. ``effects`` are what is drawn; ``seed`` decides the effects' shapes."""

    background: str
    main: Thing
    second: Thing | None = None
    effects: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Labels:
    """Exact truth about a scene. A theme word is true whenever any keyword of its theme is."""

    themes: dict[str, bool]
    keywords: dict[str, bool]
    parts: frozenset[str]
    objects: tuple[str, ...]
    colours: tuple[str, ...]
    background: str
    pairs: tuple[tuple[str, str], ...] = field(default=())


def pick(rng: np.random.Generator, values: tuple[str, ...] | list[str]) -> str:
    """One of ``values``, all equally likely, as a plain ``str``."""
    return values[int(rng.integers(len(values)))]


def effects_of(keyword: str, rng: np.random.Generator) -> tuple[str, ...]:
    """The effects a keyword draws. A theme word draws several of its theme; any other word only itself.

    ``uncased`` and ``breakage`` draw two or three of the others; ``glitch`` draws torn bands (an effect of its own)
    and, three times in five, one of the others as well.
    """
    theme = THEME_OF[check_keyword(keyword)]
    word, *others = THEMES[theme]
    if keyword != word:
        return (keyword,)
    if theme == "glitch":
        return ("bands", pick(rng, others)) if rng.random() < 0.6 else ("bands",)
    count = int(rng.integers(2, 4))
    chosen = set(rng.permutation(len(others))[:count].tolist())
    return tuple(other for index, other in enumerate(others) if index in chosen)


def theme_of_effect(effect: str) -> str:
    """Theme an effect belongs to."""
    return "glitch" if effect == "bands" else THEME_OF[effect]


def labels_of(scene: Scene) -> Labels:
    """Exact labels of ``scene``."""
    drawn = {theme_of_effect(effect) for effect in scene.effects}
    keywords = {
        word: (theme in drawn if word == words[0] else word in scene.effects)
        for theme, words in THEMES.items()
        for word in words
    }
    things = [scene.main] if scene.second is None else [scene.main, scene.second]
    parts: set[str] = set()
    if scene.main.kind == "robot":
        parts |= {"head", "antenna", "limbs"}
        parts |= {"joints"} if keywords["uncased"] else {"casing"}
        parts |= {effect.split()[-1] for effect in scene.effects if theme_of_effect(effect) == "uncased"}
    return Labels(
        themes={theme: theme in drawn for theme in THEMES},
        keywords=keywords,
        parts=frozenset(parts),
        objects=tuple(thing.kind for thing in things),
        colours=tuple(thing.colour for thing in things),
        background=scene.background,
        pairs=tuple((thing.colour, thing.kind) for thing in things),
    )


def sample_scene(
    rng: np.random.Generator,
    effects: tuple[str, ...] = (),
    kind: str | None = None,
    colour: str | None = None,
    background: str | None = None,
    second: bool | None = None,
) -> Scene:
    """A random scene that shows ``effects``; whatever is given is kept. Effects of ``uncased`` need a robot."""
    needs_robot = any(theme_of_effect(effect) == "uncased" for effect in effects)
    if needs_robot and kind not in (None, "robot"):
        raise ValueError(f"effects {effects} need a robot, not {kind!r}: only robots have a casing")
    if kind is None:
        robot = needs_robot or rng.random() < ROBOT_SHARE
        kind = "robot" if robot else pick(rng, OBJECTS[1:])
    second = bool(rng.random() < SECOND_SHARE) if second is None else second
    side = int(rng.choice([-1, 1])) if second else 0
    other = None
    if second:
        others = [name for name in OBJECTS[1:] if name != kind]
        other = Thing(pick(rng, others), pick(rng, list(COLOURS)), 32 + side * int(rng.integers(19, 22)))
    return Scene(
        background=background or pick(rng, BACKGROUNDS),
        main=Thing(kind, colour or pick(rng, list(COLOURS)), 32 - side * 8 + int(rng.integers(-3, 4))),
        second=other,
        effects=effects,
        seed=int(rng.integers(2**31)),
    )


def safe_theme(phrase: str) -> str:
    """Theme whose absence ``phrase`` states; raises ``KeyError`` for any other text."""
    return {text: theme for theme, texts in SAFE_PHRASES.items() for text in texts}[phrase]
