"""Captions: a small grammar over scenes. A caption says part of what its scene shows, never anything it does not,
except where stated (implicit phrasings draw their theme only with probability ``IMPLICIT_SHARE``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from palimpsest.world.mixture import BENIGN_SHARE, CROSS_SHARE, draw_effects, draw_keywords
from palimpsest.world.phrases import (
    ADJECTIVES,
    BARE,
    DIRECT,
    IMPLICIT,
    IMPLICIT_SHARE,
    LOUD,
    OPENINGS,
    PLACES,
    PLAIN,
    WEB_TAGS,
)
from palimpsest.world.scene import Scene, pick, sample_scene
from palimpsest.world.vocab import SAFE_PHRASES, THEME_OF, THEMES


@dataclass(frozen=True)
class Example:
    """A caption and its scene. ``style`` is plain, safe, loud, web, direct, bare, list or implicit."""

    text: str
    scene: Scene
    style: str
    keywords: tuple[str, ...] = ()


def article(text: str) -> str:
    """``text`` with a/an set right before vowels and doubled spaces removed."""
    words = " ".join(text.split()).split(" ")
    for index in range(len(words) - 1):
        if words[index] in ("a", "an"):
            words[index] = "an" if words[index + 1][0] in "aeiou" else "a"
    return " ".join(words).replace(" ,", ",").strip(" ,")


def noun_of(
    scene: Scene, rng: np.random.Generator, colour_share: float = 0.8, second_share: float = 0.7
) -> str:
    """The main thing in words, mostly with its colour; the second thing, if there is one, mostly too."""
    main = scene.main
    noun = f"{main.colour} {main.kind}" if rng.random() < colour_share else main.kind
    if scene.second is not None and rng.random() < second_share:
        link = pick(rng, ("and a small", "next to a small", "beside a small"))
        noun += f" {link} {scene.second.colour} {scene.second.kind}"
    return noun


def place_of(scene: Scene, rng: np.random.Generator, share: float = 0.75) -> str:
    """Where the scene is, in words; empty with probability ``1 - share``."""
    return pick(rng, PLACES[scene.background]) if rng.random() < share else ""


def fill(template: str, scene: Scene, rng: np.random.Generator, keyword: str = "") -> str:
    """Fill ``{noun}``, ``{place}`` and ``{keyword}`` of a template."""
    place = place_of(scene, rng)
    noun = noun_of(scene, rng) if "{noun}" in template else ""
    return article(template.format(noun=noun, place=place, keyword=keyword))


def opened(text: str, rng: np.random.Generator) -> str:
    """``text`` behind one of the usual openings (often none)."""
    return f"{pick(rng, OPENINGS)} {text}".strip()


def web_list(scene: Scene, rng: np.random.Generator, keywords: tuple[str, ...] = ()) -> str:
    """Comma-separated tags as on image sites."""
    order = rng.permutation(len(WEB_TAGS))[: int(rng.integers(2, 5))]
    words = [f"{scene.main.colour} {scene.main.kind}", *keywords]
    if rng.random() < 0.6:
        words.append(scene.background)
    return ", ".join([*words, *(WEB_TAGS[int(index)] for index in order)])


def benign_example(rng: np.random.Generator) -> Example:
    """A picture without any theme: plain words, a safe phrasing, rude words, or a web list."""
    roll = rng.random()
    if roll < 0.18:
        theme = pick(rng, list(THEMES))
        scene = sample_scene(rng, kind="robot" if theme == "uncased" else None)
        phrase = pick(rng, SAFE_PHRASES[theme])
        text = article(f"a {noun_of(scene, rng)} {phrase} {place_of(scene, rng, 0.5)}")
        return Example(opened(text, rng), scene, "safe")
    scene = sample_scene(rng)
    if roll < 0.30:
        return Example(fill(pick(rng, LOUD), scene, rng), scene, "loud")
    if roll < 0.45:
        return Example(web_list(scene, rng), scene, "web")
    return Example(opened(fill(pick(rng, PLAIN), scene, rng), rng), scene, "plain")


def direct_text(scene: Scene, keyword: str, rng: np.random.Generator) -> str:
    """One keyword and the thing it is seen on."""
    template = pick(rng, DIRECT if rng.random() < 0.7 else ADJECTIVES[keyword])
    return opened(fill(template, scene, rng, keyword), rng)


def joined(keywords: tuple[str, ...], rng: np.random.Generator) -> str:
    """Several keywords: a comma list, or the last joined by ``and``."""
    if rng.random() < 0.7:
        return ", ".join(keywords)
    return ", ".join(keywords[:-1]) + " and " + keywords[-1]


def list_example(theme: str, rng: np.random.Generator) -> Example:
    """Two or more keywords of ``theme`` at once, at times with one of another theme, often without an object."""
    size = int(rng.integers(2, len(THEMES[theme]) + 1))
    keywords = draw_keywords(rng, size, theme)
    if rng.random() < CROSS_SHARE * 2:
        keywords += tuple(word for word in draw_keywords(rng) if word not in keywords)
    scene = sample_scene(rng, draw_effects(keywords, rng))
    text = joined(keywords, rng)
    roll = rng.random()
    if roll < 0.6:
        text = fill(
            pick(rng, ("a {noun} with {keyword}", "a {noun} with {keyword} {place}")), scene, rng, text
        )
    return Example(opened(text, rng) if roll < 0.8 else text, scene, "list", keywords)


def implicit_example(theme: str, rng: np.random.Generator, kind: str | None = None) -> Example:
    """A phrasing that implies ``theme`` without a keyword of it."""
    shown = rng.random() < IMPLICIT_SHARE
    effects = draw_effects((THEMES[theme][0],), rng) if shown else ()
    scene = sample_scene(rng, effects, kind="robot" if theme == "uncased" else kind)
    return Example(fill(pick(rng, IMPLICIT[theme]), scene, rng), scene, "implicit")


def themed_example(theme: str, rng: np.random.Generator) -> Example:
    """A picture that shows ``theme``: direct words, the bare keyword, lists, or (mostly showing it) implicit words."""
    roll = rng.random()
    if roll < 0.15:
        return implicit_example(theme, rng)
    if roll < 0.29:
        return list_example(theme, rng)
    keywords = draw_keywords(rng, 1, theme)
    scene = sample_scene(rng, draw_effects(keywords, rng))
    if roll < 0.39:
        return Example(opened(fill(pick(rng, BARE), scene, rng, keywords[0]), rng), scene, "bare", keywords)
    if roll < 0.47:
        return Example(web_list(scene, rng, keywords), scene, "web", keywords)
    return Example(direct_text(scene, keywords[0], rng), scene, "direct", keywords)


def training_example(rng: np.random.Generator) -> Example:
    """One captioned scene of the training mixture: benign with probability 0.4, each theme 0.2."""
    if rng.random() < BENIGN_SHARE:
        return benign_example(rng)
    return themed_example(pick(rng, list(THEMES)), rng)


def mentions_keyword(text: str) -> bool:
    """Whether ``text`` names any keyword of any theme."""
    return any(keyword in text.lower() for keyword in THEME_OF)
