"""The minors gate: no prompt with a cue of a minor reaches a generator in a sexual or unsafe setting.

It has no switch. Every prompt of every suite passes through `verdict`; other texts on their way to a
generator (keyword prompts, training images, attacks) pass through `require`. The rule:

- cue of a minor and sexual theme, category or wording: excluded, in every suite;
- cue of a minor alone in an unsafe suite: excluded;
- cue of a minor alone in a benign suite: passes (a caption about a child flying a kite is harmless).

Ages of 18 and more are no cue. The gate prefers to exclude too much: "girl" and "boy" are cues in unsafe
suites, "girlfriend", "boyfriend" and "cowboy" are not.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from palimpsest.prompts import lexicon

ADULT = 18
CUE_SEXUAL = "minor_cue_sexual"
CUE_UNSAFE = "minor_cue_unsafe_suite"

_INVISIBLE = "\u115f\u1160\u3164\uffa0\u2800\u00ad"
_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
_TEENS = ("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen")
_NUMBERS = {word: value for value, word in enumerate((*_UNITS, *_TEENS))}
_TENS_WORDS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million"
_TENS = rf"(?:(?:{_TENS_WORDS})[\W_]+(?:and[\W_]+)?)*"
_WORD = "|".join(sorted(_NUMBERS, key=len, reverse=True))
_DIGITS = r"[0-9oil|]*[0-9][0-9oil|]*(?:[.,][0-9]+)*"
_NUMBER = rf"(?P<number>(?<![a-z0-9])(?<![0-9][.,])(?:{_DIGITS}|{_TENS}(?:{_WORD})))"
_GAP = r"[\W_]{0,3}"
_YEARS = rf"{_GAP}(?:years?|yrs?|y)(?:{_GAP}(?:o|olds?|young)(?![a-z])|[\W_]+of[\W_]+age(?![a-z]))"
_AGES = (
    re.compile(_NUMBER + _YEARS),
    re.compile(rf"{_NUMBER}{_GAP}(?:to|or|and|-|/){_GAP}[0-9]+{_YEARS}"),
    re.compile(rf"(?<![a-z])aged(?:[\W_]+(?:of|about|around|only|just))?{_GAP}{_NUMBER}(?![a-z0-9])"),
    re.compile(
        r"(?<![a-z])(?<!dragon )(?<!ice )(?<!stone )(?<!bronze )(?<!iron )(?<!space )(?<!new )(?<!golden "
        r")ages?"
        rf"(?:[\W_]+(?:of|is|about|around|only|just))?{_GAP}{_NUMBER}(?![a-z0-9])"
    ),
)
_MONTHS = re.compile(rf"(?<![a-z])(?:months?|weeks?|days?){_GAP}olds?(?![a-z])")
_UNDER = re.compile(
    rf"(?<![a-z])(?:under|below|younger than){_GAP}(?:the age "
    rf"of{_GAP})?(?:1[3-8]|sixteen|seventeen|eighteen)(?![a-z0-9])"
)
_GRADE = re.compile(
    r"(?<![a-z0-9])(?:1st|2nd|3rd|(?:[4-9]|1[0-2])th|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth)"
    rf"{_GAP}grad(?:e|ers?)(?![a-z])"
)
_PARTIAL = {
    word: (lexicon.union([word]), re.compile(before), re.compile(after))
    for word, (before, after) in lexicon.MINOR_EXCEPTIONS.items()
}
_MAYBE_PARTIAL = lexicon.union(lexicon.MINOR_EXCEPTIONS)
_MAYBE_AGE = re.compile(rf"[0-9]|{_WORD}")
_PLAIN = lexicon.union([term for term in lexicon.MINOR_TERMS if term not in lexicon.MINOR_EXCEPTIONS])
_SEXUAL = lexicon.union(lexicon.SEXUAL_TERMS)


_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_APART = re.compile(r"(?<![a-z0-9])(?:[a-z0-9][\W_]+){2,}[a-z0-9](?![a-z0-9])")
_INSIDE = re.compile(r"(?<=[a-z0-9])[^a-z0-9\s@$!|+]+(?=[a-z0-9])")


class Refused(ValueError):
    """Texts with a cue of a minor were about to reach a generator. The message shows hashes only."""


def sha256(prompt: str) -> str:
    """Hex SHA-256 of the prompt's UTF-8 bytes, exactly as read: the only trace an excluded prompt leaves."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


def _fold(text: str) -> str:
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Me"))
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKD", kept.casefold()))


def _bare(text: str, instead: str) -> str:
    return "".join(instead if unicodedata.category(c) == "Cf" or c in _INVISIBLE else c for c in text)


def _hit(expression: re.Pattern[str], reading: str) -> bool:
    """Whether a term stands in a reading; digits alone ("707") spell no word."""
    return any(re.search("[a-z]", match.group()) for match in expression.finditer(reading))


@lru_cache(maxsize=4096)
def views(text: str) -> tuple[str, ...]:
    """Readings of a text in which the lexicon is looked for.

    Lower case, compatibility characters, accents, look-alikes and invisible characters resolved; words run
    together in CamelCase split; letters set apart one by one joined; signs inside words removed.
    """
    readings = []
    # plain ASCII has nothing to resolve; the shortcut is there because most prompts are
    bares = (text,) if text.isascii() else (_bare(text, ""), _bare(text, " "))
    for cased in dict.fromkeys(reading for bare in bares for reading in (bare, _CAMEL.sub(" ", bare))):
        folded = (
            re.sub(r"\s+", " ", cased.lower())
            if cased.isascii()
            else _fold(cased).translate(lexicon.HOMOGLYPHS)
        )
        joined = _APART.sub(lambda match: re.sub(r"[\W_]", "", match.group()), folded)
        readings += [folded, joined, _INSIDE.sub("", folded)]
    return tuple(dict.fromkeys(readings))


def _age(text: str) -> float | None:
    """The number in an age expression, or None for numbers that are adult by construction ("twenty-one")."""
    if text in _NUMBERS:
        return _NUMBERS[text]
    if not re.match(r"[0-9oil|]", text) or not re.search(r"[0-9]", text):
        return None
    digits = re.sub(r"[.,](?=[0-9]{3}(?:[.,]|$))", "", text.translate(str.maketrans("oil|", "0111"))).replace(
        ",", "."
    )
    return float(digits if digits.count(".") <= 1 else digits.split(".")[0])


def _young(reading: str) -> bool:
    if not _MAYBE_AGE.search(reading):
        return _graded(reading) or ("old" in reading and _MONTHS.search(reading) is not None)
    for expression in _AGES:
        for match in expression.finditer(reading):
            age = _age(match.group("number"))
            if age is not None and age < ADULT:
                return True
    return any(expression.search(reading) for expression in (_MONTHS, _UNDER)) or _graded(reading)


def _graded(reading: str) -> bool:
    return "grad" in reading and _GRADE.search(reading) is not None


def _partial(reading: str) -> bool:
    if not _hit(_MAYBE_PARTIAL, reading):
        return False
    for found, before, after in _PARTIAL.values():
        for match in found.finditer(reading):
            if not before.search(reading[: match.start()]) and not after.match(reading[match.end() :]):
                return True
    return False


_UNSPACED = tuple(_fold(word) for word in lexicon.MINOR_UNSPACED)


@lru_cache(maxsize=4096)
def minor_cue(text: str) -> bool:
    """Whether a text holds any cue of a minor, under any reading of it."""
    if not text.isascii():
        if any(glyph in text for glyph in lexicon.MINOR_GLYPHS):
            return True
        folded = _fold(_bare(text, ""))
        if any(word in folded for word in _UNSPACED):
            return True
    return any(_hit(_PLAIN, reading) or _young(reading) or _partial(reading) for reading in views(text))


@lru_cache(maxsize=4096)
def sexual(text: str) -> bool:
    """Whether a text (a prompt, a theme, a category list) is sexual, under any reading of it."""
    return any(_hit(_SEXUAL, reading) for reading in views(text))


def verdict(prompt: str, unsafe: bool, context: str = "") -> str | None:
    """Why this prompt must not be generated, or None.

    unsafe: the suite is judged for erasure; a cue alone then excludes. context: theme and category words that
    come with the prompt.
    """
    if not minor_cue(prompt):
        return None
    if sexual(prompt) or sexual(context):
        return CUE_SEXUAL
    return CUE_UNSAFE if unsafe else None


def require(texts: Iterable[str]) -> None:
    """Pass texts that go to a generator outside any suite. Raises Refused when one holds a cue of a minor."""
    found = sorted({sha256(text) for text in texts if minor_cue(text)})
    if found:
        raise Refused(
            f"{len(found)} text(s) with a cue of a minor were refused (SHA-256: {', '.join(found)}). "
            "This gate has no switch: take the cue out of the keyword, template or prompt that made them."
        )
