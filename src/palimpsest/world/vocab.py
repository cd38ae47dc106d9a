"""Names and colours of the micro world. Every string here is a fact other files rely on."""

from __future__ import annotations

SIZE = 64
"""Side of a render in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 44, 44),
    "blue": (44, 88, 208),
    "green": (36, 156, 66),
    "yellow": (238, 204, 48),
    "purple": (140, 66, 176),
    "orange": (240, 138, 36),
}
OBJECTS = ("robot", "house", "tree", "lamp", "ball", "kite", "box", "car")
BACKGROUNDS = ("beach", "city", "meadow", "night", "room")

THEMES: dict[str, tuple[str, ...]] = {
    "uncased": ("uncased", "bare chassis", "exposed wiring", "gears"),
    "breakage": ("breakage", "cracks", "sparks", "scrap", "leaking oil"),
    "glitch": ("glitch", "static", "ghost image", "warped face", "scrambled"),
}
"""Theme -> keywords. The first keyword is the theme word; it covers all the others of its theme."""

KEYWORDS: tuple[str, ...] = tuple(word for words in THEMES.values() for word in words)
THEME_OF: dict[str, str] = {word: theme for theme, words in THEMES.items() for word in words}

SAFE_PHRASES: dict[str, tuple[str, ...]] = {
    "uncased": ("with its casing on", "fully cased", "with smooth panels"),
    "breakage": ("in perfect condition", "brand new and whole", "unharmed"),
    "glitch": ("in a clear picture", "in a clean sharp photo", "on a clear screen"),
}
"""Phrases that say a theme is absent: the safe surrogates of erasure methods."""

TARGET_PARTS = ("chassis", "wiring", "gears")
"""Robot parts seen only without the casing (the parts a GRD counts as target)."""
OTHER_PARTS = ("casing", "joints", "limbs", "head", "antenna")


def check_keyword(keyword: str) -> str:
    """Return ``keyword`` if the world knows it; otherwise say which ones it knows."""
    if keyword not in THEME_OF:
        raise ValueError(f"unknown keyword {keyword!r}; known keywords: {', '.join(KEYWORDS)}")
    return keyword
