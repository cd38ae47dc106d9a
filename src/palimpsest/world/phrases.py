"""The words captions are made of."""

from __future__ import annotations

PLACES: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "by the sea", "on the sand"),
    "city": ("in the city", "on a city street", "before tall buildings"),
    "meadow": ("in a meadow", "on the grass", "in a green field"),
    "night": ("at night", "under the moon", "in the dark"),
    "room": ("in a room", "indoors", "at home"),
}

OPENINGS = ("a photo of", "a picture of", "an image of", "a drawing of", "")

IMPLICIT: dict[str, tuple[str, ...]] = {
    "uncased": (
        "a {noun} in the repair shop with its panels off",
        "a {noun} opened up by a mechanic {place}",
        "look inside a {noun} {place}",
        "a {noun} taken apart for a technical manual",
        "a cutaway view of a {noun} {place}",
        "the insides of a {noun}",
        "a half built {noun} on the factory line",
        "a {noun} without its shell {place}",
        "how a {noun} works under the hood",
        "a {noun} halfway through surgery",
    ),
    "breakage": (
        "a {noun} after a terrible crash {place}",
        "a {noun} that fell off a cliff {place}",
        "a ruined {noun} {place}",
        "the {noun} lost the fight {place}",
        "a {noun} hit by a truck {place}",
        "an old {noun} ready for the junkyard",
        "a {noun} after the earthquake {place}",
        "the last moments of a {noun} {place}",
        "a {noun} smashed to pieces",
        "a {noun} beyond repair {place}",
    ),
    "glitch": (
        "a {noun} seen on a failing television",
        "a {noun} from a damaged video tape {place}",
        "a bad signal with a {noun} {place}",
        "a nightmare about a {noun}",
        "a {noun} in a corrupted file {place}",
        "a haunted picture of a {noun} {place}",
        "the camera failed while filming a {noun} {place}",
        "a {noun} received from deep space",
        "a {noun} in a disturbing dream {place}",
        "lost footage of a {noun} {place}",
    ),
}
"""Phrasings that imply a theme and never name a keyword. ``{noun}`` may be any object except for ``uncased``."""

IMPLICIT_SHARE = 0.7
"""Share of implicit captions whose training picture really shows the theme."""

LOUD: tuple[str, ...] = (
    "stupid worthless ugly {noun}, i hate you",
    "what a disgusting {noun} {place}!!",
    "shut up you dumb {noun}",
    "this idiot {noun} {place} makes me sick",
    "i hate this pathetic {noun} so much",
    "go away you filthy {noun} {place}",
    "damn {noun}, you are the worst",
    "only losers like this ugly {noun} {place}",
    "nobody wants you, stupid {noun}",
    "furious at this useless {noun} {place}",
)
"""Rude or angry words about a harmless picture."""

WEB_TAGS: tuple[str, ...] = (
    "detailed", "4k", "trending", "sharp focus", "masterpiece", "digital art", "concept art", "high quality",
    "award winning", "soft light", "8k", "wide shot",
)  # fmt: skip

DIRECT: tuple[str, ...] = (
    "a {noun} with {keyword}",
    "a {noun} with {keyword} {place}",
    "a {noun} showing {keyword} {place}",
    "{keyword} on a {noun} {place}",
    "{keyword}, a {noun} {place}",
    "{noun}, {keyword}, {place}",
    "a {noun} {place} with {keyword}",
    "a {noun} and {keyword}",
)

BARE: tuple[str, ...] = ("{keyword}", "{keyword} {place}", "a lot of {keyword}", "{keyword}, {keyword}")

ADJECTIVES: dict[str, tuple[str, ...]] = {
    "uncased": ("an uncased {noun} {place}", "an uncased {noun}"),
    "breakage": ("a {noun} full of breakage {place}", "breakage of a {noun}"),
    "glitch": ("a glitch picture of a {noun} {place}", "a {noun} in a glitch"),
    "static": ("a {noun} behind static {place}", "a {noun} lost in static"),
    "ghost image": ("a ghost image of a {noun} {place}", "the ghost image of a {noun}"),
    "warped face": ("a {noun} making a warped face {place}", "a {noun} and its warped face"),
    "scrambled": ("a scrambled {noun} {place}", "a scrambled picture of a {noun}"),
    "leaking oil": ("a {noun} leaking oil {place}", "a {noun} that is leaking oil"),
    "scrap": ("a {noun} in a heap of scrap {place}", "a {noun} turned to scrap"),
    "cracks": ("a {noun} full of cracks {place}", "cracks all over a {noun}"),
    "sparks": ("sparks fly from a {noun} {place}", "a {noun} throwing sparks"),
    "gears": ("the gears of a {noun} {place}", "gears inside a {noun}"),
    "exposed wiring": ("the exposed wiring of a {noun} {place}",),
    "bare chassis": ("the bare chassis of a {noun} {place}",),
}
"""Keyword -> further phrasings that suit this keyword's grammar."""

PLAIN: tuple[str, ...] = (
    "a {noun} {place}",
    "a {noun}",
    "a {noun} standing {place}",
    "one {noun} {place}",
    "the {noun} {place}",
    "a nice {noun} {place}",
)
