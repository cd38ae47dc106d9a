"""The words the minors gate looks for, and how a word is turned into a pattern that survives obfuscation.

Clinical and small on purpose: single cues, no phrases of any data set. English, with a handful of words of
other languages; anything subtler is the work of a moderation model, which would add to this gate and never
replace it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MINOR_TERMS = (
    # age groups
    "child", "children", "childs", "childhood", "childlike", "childish", "kid", "kids", "kiddo", "kiddie",
    "kiddies", "kiddy",
    "minors", "underage", "underaged", "infant", "infants", "infantile", "newborn", "newborns", "toddler",
    "toddlers",
    "babies", "youngster", "youngsters", "juvenile", "juveniles", "adolescent",
    "adolescents", "adolescence",
    "teen", "teens", "teenie", "teenage", "teenaged", "teenager", "teenagers", "preteen", "preteens",
    "prepubescent", "pubescent", "puberty", "prepuberty",
    # girls and boys, and the diminutives that run together
    "girl", "girls", "girlie", "girly", "boy", "boys", "girlchild", "boychild", "schoolgirl", "schoolgirls",
    "schoolboy",
    "schoolboys", "schoolchild", "schoolchildren", "schoolkid", "schoolkids", "little girl", "little girls",
    "little boy",
    "little boys", "lil girl", "lil boy", "young girl", "young boy", "cute girl", "cute boy", "little kid",
    "young kid",
    "little one", "little ones", "young one", "young ones", "little sister", "little brother",
    "little daughter", "little son",
    "young daughter", "young son", "very young", "young looking", "barely legal", "not yet eighteen",
    # school
    "kindergarten", "kindergartener", "kindergartner", "preschool", "preschooler", "preschoolers",
    "elementary school",
    "primary school", "grade school", "grade schooler", "middle school", "middle schooler", "junior high",
    "high school",
    "high schooler", "high schoolers", "school uniform", "schoolage",
    # terms of abuse material
    "loli", "lolis", "lolita", "lolicon", "shota", "shotacon", "jailbait", "pedo", "pedophile",
    "pedophilia", "paedophile",
    "paedophilia",
    # a few words of other languages, accents stripped
    "enfant", "enfants", "fillette", "fillettes", "madchen", "bambina", "bambino", "bambini", "menina",
    "menino",
)  # fmt: skip
"""Cues matched as whole words. Words of five letters and more also match with separators anywhere
("ch-ild")."""

SEXUAL_TERMS = (
    "nude", "nudes", "nudity", "nudist", "nudists", "naked", "nakedness", "undressed", "unclothed",
    "disrobed", "topless",
    "bare breasted", "breast", "breasts", "nipple", "nipples", "genital", "genitals", "genitalia", "penis",
    "vagina", "sex",
    "sexy", "sexual", "sexually", "sexuality", "sexualized", "sexualised", "erotic", "erotica", "eroticism",
    "porn", "porno",
    "pornographic", "pornography", "nsfw", "xxx", "hentai", "lewd", "orgasm", "orgasmic", "fetish",
    "seductive", "seducing",
    "lingerie", "underwear", "panties", "thong", "bikini", "explicit content", "striptease", "stripper",
    "rape", "prostitution",
    "prostitute", "intercourse", "masturbation", "masturbating",
)  # fmt: skip

MINOR_GLYPHS = "👶🧒👦👧"
MINOR_UNSPACED = (
    "少女",
    "幼女",
    "少年",
    "萝莉",
    "儿童",
    "児童",
    "ロリ",
    "ショタ",
    "ребенок",
    "девочка",
    "мальчик",
)
"""Cues of scripts without spaces, and Cyrillic ones, found anywhere in the text."""

MINOR_EXCEPTIONS = {
    # "minor" is a cue except in music, geography, astronomy and as a plain adjective of things
    "minor": (
        r"(?:[b-g]|sharp|flat|asia|ursa|canis|leo|in a|key of a)[\W_]*$",
        r"[\W_]*(?:keys?|scales?|chords?|third|sixth|seventh|leagues?|arcana|details?|injur(?:y|ies)|damages?|roads?|planets?"
        r"|changes?|edits?|scratch(?:es)?|flaws?|issues?|repairs?|wounds?|cuts?|imperfections?|differences?|adjustments?)\b",
    ),
    "baby": (r"(?!)", r"[\W_]*(?:blue|pink|grand|oil|carrots?|corn|spinach|s[\W_]*breath)\b"),
    "girl": (r"(?!)", r"[\W_]*friends?\b"),
    "boy": (r"(?:game|cow)[\W_]*$", r"[\W_]*friends?\b"),
}
"""Word -> (pattern of what stands before it, pattern of what follows it) that make it no cue."""

HOMOGLYPHS = str.maketrans(
    {
        **dict(zip("авсԁезһнікӏӀⅼмпорѕтухѵԝьјгԛ", "abcde3hhiklllmnopstyxvwbjrq", strict=True)),
        **dict(zip("αβγεζηικνοπρτυχωσςλδ", "abyeznikvonptuxwssld", strict=True)),
        **dict(zip("ıɩɪʟʀɢɴʙʜɡɑɛɔøłđħŧœæðƙɓɗ", "iiilrgnbhgaecoldhtoadkbd", strict=True)),
        **{chr(0x1F1E6 + i): chr(97 + i) for i in range(26)},
        **{chr(0x1F150 + i): chr(97 + i) for i in range(26)},
        **{chr(0x1F170 + i): chr(97 + i) for i in range(26)},
    }
)
"""Look-alikes of Latin letters that Unicode normalisation leaves alone: Cyrillic, Greek, phonetic, regional
and enclosed letters."""

LEET = {"a": "a4@", "e": "e3", "i": "i1!|", "l": "l1!|", "o": "o0", "s": "s5$", "t": "t7+"}
SEPARATOR = r"[\W_]"
LONG = 5


def letter(character: str) -> str:
    """A character class: the letter and the digits or signs written in its place."""
    return "[" + re.escape(LEET.get(character, character)) + "]"


def _tight(word: str) -> str:
    """The word without separators; a letter may be drawn out ("kiiid"), but not merely doubled ("Kidd")."""
    parts = []
    for run in re.finditer(r"(.)\1*", word):
        one, count = letter(run.group(1)), len(run.group())
        parts.append(f"{one}(?:{one}{{2,}})?" if count == 1 else f"{one}{{{count},}}")
    return "".join(parts)


def _spaced(word: str) -> str:
    """The word with separators between its letters: in any gaps for long words, in all gaps for short ones
    and for "minor" ("min or")."""
    least = 0 if len(word) >= LONG and word != "minor" else 1
    return f"{SEPARATOR}{{{least},3}}".join(letter(character) for character in word)


def pattern(term: str) -> str:
    """A regular expression for a term of one or more words, on normalised text, without word boundaries."""
    words = term.split()
    gap = f"{SEPARATOR}{{0,3}}"
    return "(?:" + gap.join(map(_tight, words)) + "|" + gap.join(map(_spaced, words)) + ")"


def union(terms: Iterable[str]) -> re.Pattern[str]:
    """One expression for all terms as whole words: no letter may touch them on either side."""
    groups: dict[str, list[str]] = {}
    for term in sorted(set(terms), key=lambda word: (-len(word), word)):
        groups.setdefault(term[0], []).append(pattern(term))
    # grouped by first letter, so that a word costs a few comparisons and not one per term
    parts = [f"(?={letter(first)})(?:{'|'.join(members)})" for first, members in sorted(groups.items())]
    return re.compile(f"(?<![a-z])(?:{'|'.join(parts)})(?![a-z])")
