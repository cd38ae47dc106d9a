"""What has been labelled so far: the events of a journal, one after another, make a board.

A board holds no more than its events say, so a server that was killed goes on exactly where the journal ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from palimpsest.annotate.votes import Answer, Role, Vote


@dataclass(frozen=True, order=True)
class Place:
    """Where an image was met. key: of the generations' artifact, empty for files; image_id: its id there, or the file's name."""

    key: str
    place: str
    image_id: str


@dataclass(frozen=True)
class Given:
    """What a rater said about an image: answers by theme."""

    answers: Mapping[str, Answer]
    at: str


@dataclass
class Sheet:
    """One person's answers (or decisions). skipped: images to come back to; past: what each of their own answers replaced, for undoing;
    undone: the image that was just taken back, with its answers, so that correcting one theme does not mean giving all of them again."""

    given: dict[str, Given] = field(default_factory=dict)
    skipped: dict[str, None] = field(default_factory=dict)
    past: list[tuple[str, Given | None, bool]] = field(default_factory=list)
    undone: tuple[str, Given] | None = None

    def take(self, image: str, given: Given | None, undoable: bool) -> None:
        """An answer, or (None) a skip."""
        if undoable:
            self.past.append((image, self.given.get(image), image in self.skipped))
            self.undone = None
        self.skipped.pop(image, None)
        if given is None:
            self.skipped[image] = None
        else:
            self.given[image] = given

    def undo(self) -> str | None:
        """Take the last answer or skip back; returns its image."""
        if not self.past:
            return None
        image, before, was_skipped = self.past.pop()
        taken = self.given.pop(image, None)
        self.undone = None if taken is None else (image, taken)
        self.skipped.pop(image, None)
        if before is not None:
            self.given[image] = before
        if was_skipped:
            self.skipped[image] = None
        return image


@dataclass
class Board:
    """Themes with their keywords, seed of the orders, images with the places they were met at, and everybody's answers."""

    themes: dict[str, list[str]] = field(default_factory=dict)
    seed: int = 0
    places: dict[str, set[Place]] = field(default_factory=dict)
    raters: dict[str, Sheet] = field(default_factory=dict)
    deciders: dict[str, Sheet] = field(default_factory=dict)
    conflicts: dict[str, list[str]] = field(default_factory=dict)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take in one event of the journal. Raises ValueError for one that this version does not know."""
        kind = event["kind"]
        if kind == "store":
            self.themes = {str(name): list(words) for name, words in event["themes"].items()}
            self.seed = int(event["seed"])
        elif kind == "picture":
            found = self.places.setdefault(event["image"], set())
            found |= {Place(*seen) for seen in event["places"]}
        elif kind in ("answer", "skip", "undo", "again"):
            self._said(kind, event)
        else:
            raise ValueError(f"the journal holds an event {kind!r}, which this version does not know")

    def _said(self, kind: str, event: Mapping[str, Any]) -> None:
        sheet = self._sheets(event["role"]).setdefault(event["rater"], Sheet())
        image: str | None = event.get("image")
        if kind == "again":
            sheet.skipped.clear()
        elif kind == "undo":
            image = sheet.undo()
        else:
            given = None if kind == "skip" else Given(dict(event["answers"]), event["at"])
            sheet.take(str(image), given, undoable=not event.get("imported"))
        if image is not None:
            self._compare(image)

    def _compare(self, image: str) -> None:
        """Find the themes about which raters disagree; only one image changes at a time."""
        given = [sheet.given[image].answers for sheet in self.raters.values() if image in sheet.given]
        found = [theme for theme in self.themes if {"yes", "no"} <= {answers[theme] for answers in given}]
        self.conflicts.pop(image, None)
        if found:
            self.conflicts[image] = found

    def _sheets(self, role: Role) -> dict[str, Sheet]:
        return self.raters if role == "rater" else self.deciders

    def sheet(self, rater: str, role: Role = "rater") -> Sheet:
        """A person's sheet, empty when they have said nothing yet."""
        return self._sheets(role).get(rater) or Sheet()

    def votes(self) -> list[Vote]:
        """Every answer that stands, in one order whatever the order of events."""
        roles: tuple[tuple[Role, dict[str, Sheet]], ...] = (
            ("rater", self.raters),
            ("adjudicator", self.deciders),
        )
        return [
            Vote(image, theme, rater, role, given.answers[theme], given.at)
            for role, sheets in roles
            for rater, sheet in sorted(sheets.items())
            for image, given in sorted(sheet.given.items())
            for theme in sorted(given.answers)
        ]

    def order(self, rater: str, images: Iterable[str]) -> list[str]:
        """The images in the order of this rater: every rater has their own, the same one every time."""
        return sorted(
            images, key=lambda image: hashlib.sha256(f"{self.seed}\n{rater}\n{image}".encode()).digest()
        )

    def queue(self, rater: str, images: Iterable[str]) -> list[str]:
        """The images that this rater has still to look at, in their order, one just taken back first; skipped ones are not among them."""
        sheet = self.sheet(rater)
        left = [image for image in images if image not in sheet.given and image not in sheet.skipped]
        first = sheet.undone[0] if sheet.undone else None
        return sorted(self.order(rater, left), key=lambda image: image != first)

    def disputes(self) -> list[tuple[str, list[str], dict[str, Answer]]]:
        """Images with opposite answers of raters, in one order: their themes, and what was decided about these."""
        return [
            (image, themes, self._decided(image, themes)) for image, themes in sorted(self.conflicts.items())
        ]

    def _decided(self, image: str, themes: list[str]) -> dict[str, Answer]:
        given = [
            (sheet.given[image].at, who, sheet.given[image].answers)
            for who, sheet in self.deciders.items()
            if image in sheet.given
        ]
        latest: dict[str, Answer] = {}
        for _, _, answers in sorted(given, key=lambda item: item[:2]):
            latest |= {theme: answers[theme] for theme in themes if theme in answers}
        return latest


def replay(events: Iterable[Mapping[str, Any]]) -> Board:
    """The board that events make."""
    board = Board()
    for event in events:
        board.apply(event)
    return board
