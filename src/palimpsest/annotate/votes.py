"""Votes of raters: what they are, how they make a label, where raters disagree. Knows neither pages nor files.

A vote is one rater's answer about one image and one theme. A label is the answer of most raters ("unsure" counts for nobody), or what
was decided about the image where they disagreed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

Answer = Literal["yes", "no", "unsure"]
Role = Literal["rater", "adjudicator"]
ANSWERS: tuple[str, ...] = get_args(Answer)
ROLES: tuple[str, ...] = get_args(Role)
DIGEST = re.compile(r"[0-9a-f]{64}")
LONGEST = 60


@dataclass(frozen=True)
class Vote:
    """One answer. image: digest of the pixels; at: when, as ISO 8601 in UTC."""

    image: str
    theme: str
    rater: str
    role: Role
    answer: Answer
    at: str


def rater_name(text: object) -> str:
    """A rater's name, trimmed and in one Unicode form. Raises ValueError for names that are empty, too long, or hold control characters."""
    name = unicodedata.normalize("NFC", text).strip() if isinstance(text, str) else ""
    if not name or len(name) > LONGEST or not name.isprintable():
        raise ValueError(
            f"a rater's name has 1 to {LONGEST} printable characters, got {str(text)[: LONGEST + 1]!r}"
        )
    return name


def checked(answers: object, themes: Iterable[str]) -> dict[str, Answer]:
    """Answers for every theme. Raises ValueError naming what is missing, unknown or no answer."""
    wanted = list(themes)
    if not isinstance(answers, Mapping) or set(answers) != set(wanted):
        found = sorted(map(str, answers)) if isinstance(answers, Mapping) else type(answers).__name__
        raise ValueError(f"one answer for each theme is needed: {wanted}; got {found}")
    odd = {str(name): value for name, value in answers.items() if value not in ANSWERS}
    if odd:
        raise ValueError(f"answers {odd} are none; allowed: {list(ANSWERS)}")
    return {name: cast(Answer, answers[name]) for name in wanted}


Asked = tuple[str, str]
"""An image and a theme."""


def tallies(votes: Iterable[Vote]) -> dict[Asked, Counter[str]]:
    """How often each answer was given by raters, per image and theme."""
    found: dict[Asked, Counter[str]] = defaultdict(Counter)
    for vote in votes:
        if vote.role == "rater":
            found[vote.image, vote.theme][vote.answer] += 1
    return dict(found)


def decisions(votes: Iterable[Vote]) -> dict[Asked, Answer]:
    """What was decided where raters disagreed; the latest decision where there are several."""
    found: dict[Asked, Vote] = {}
    for vote in votes:
        if vote.role == "adjudicator":
            known = found.get((vote.image, vote.theme))
            if known is None or (known.at, known.rater) <= (vote.at, vote.rater):
                found[vote.image, vote.theme] = vote
    return {asked: vote.answer for asked, vote in found.items()}


def majority(tally: Mapping[str, int]) -> bool | None:
    """Whether most of those who said yes or no said yes; None for a tie and where nobody did."""
    yes, no = tally.get("yes", 0), tally.get("no", 0)
    return None if yes == no else yes > no


def labels(votes: Sequence[Vote]) -> dict[Asked, bool | None]:
    """The label of every image and theme with a vote: as decided, else as most said. None: undecided, or decided to be unclear."""
    decided = decisions(votes)
    found = {asked: majority(tally) for asked, tally in tallies(votes).items()}
    return found | {asked: {"yes": True, "no": False}.get(answer) for asked, answer in decided.items()}


def disputed(votes: Sequence[Vote]) -> dict[str, list[str]]:
    """Image -> themes about which one rater says yes and another no, whether decided since or not; in the order of images and themes."""
    found: dict[str, list[str]] = defaultdict(list)
    for (image, theme), tally in sorted(tallies(votes).items()):
        if tally["yes"] and tally["no"]:
            found[image].append(theme)
    return dict(found)


def ratings(votes: Sequence[Vote], theme: str) -> list[list[int]]:
    """Ratings of a theme for metrics.agreement: [images][raters], both in the order of their names; 1 yes, 0 no, -1 neither."""
    given = [vote for vote in votes if vote.role == "rater" and vote.theme == theme]
    raters = sorted({vote.rater for vote in given})
    images = sorted({vote.image for vote in given})
    table = {image: [-1] * len(raters) for image in images}
    for vote in given:
        table[vote.image][raters.index(vote.rater)] = {"yes": 1, "no": 0}.get(vote.answer, -1)
    return [table[image] for image in images]
