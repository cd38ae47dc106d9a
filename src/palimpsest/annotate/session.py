"""What raters do, made safe for several at once: every action is in the journal before the board shows it."""

from __future__ import annotations

import datetime
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from palimpsest.annotate import votes
from palimpsest.annotate.board import Board, Place, replay
from palimpsest.annotate.journal import Journal
from palimpsest.annotate.pictures import Found, keep
from palimpsest.annotate.votes import Role, Vote

JOURNAL = "journal.jsonl"


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class OtherThemes(ValueError):
    """The store was begun for other themes."""


class Session:
    """An open store: `folder/journal.jsonl` and `folder/images/`. raters: the only names allowed, any when empty.

    Raises journal.Busy, journal.Damaged, OtherThemes.
    """

    def __init__(
        self,
        folder: Path,
        themes: Mapping[str, list[str]],
        seed: int = 0,
        raters: Iterable[str] = (),
        clock: Callable[[], str] = now,
    ) -> None:
        self.images = folder / "images"
        self.allowed = [votes.rater_name(name) for name in raters]
        self._clock = clock
        self._lock = threading.RLock()
        # copies of the images, and who said what about them, are nobody else's business
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.journal = Journal(folder / JOURNAL)
        try:
            self.board: Board = replay(self.journal.records)
            if not self.board.themes:
                self._record({"kind": "store", "themes": dict(themes), "seed": seed})
            elif list(self.board.themes) != list(themes):
                raise OtherThemes(
                    f"{folder} was begun for the themes {list(self.board.themes)}, not {list(themes)}; name another store with --store"
                )
            self.images.mkdir(exist_ok=True)
            self.here = {image for image in self.board.places if self.path(image).is_file()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the store."""
        self.journal.close()

    def path(self, image: str) -> Path:
        """The file of an image of the store. Raises KeyError for anything that is not one: no other path can come out."""
        if image not in self.board.places or not votes.DIGEST.fullmatch(image):
            raise KeyError(image)
        return self.images / f"{image}.png"

    def add(self, found: Iterable[Found]) -> int:
        """Take images in; returns how many are new. Images that are there already only learn where else they were met."""
        events, before = [], len(self.here)
        for image, place in found:
            digest = keep(image, self.images)
            self.here.add(digest)
            if place not in self.board.places.get(digest, ()):
                events.append(_picture(digest, [place]))
        with self._lock:
            self._record(*events)
        return len(self.here) - before

    def _record(self, *events: Mapping[str, Any]) -> None:
        with self._lock:
            if events:
                self.journal.append(*events)
            for event in events:
                self.board.apply(event)

    # --- what a person does ----------------------------------------------------------------------------------------------------

    def rater(self, text: object) -> str:
        """A name that may label here. Raises ValueError."""
        name = votes.rater_name(text)
        if self.allowed and name not in self.allowed:
            raise ValueError(f"{name!r} is no rater of this store; allowed: {self.allowed}")
        return name

    def answer(self, who: str, image: str, answers: object, role: Role = "rater") -> None:
        """Save answers about an image, over earlier ones: about all themes, or, as a decision, about those that raters disagree on.

        Raises KeyError for an unknown image, ValueError for what is no answer, or for a decision where nobody disagrees.
        """
        self.path(image)
        with self._lock:
            wanted = self.board.themes if role == "rater" else self.board.conflicts.get(image, [])
            if not wanted:
                raise ValueError("raters do not disagree about this image, so there is nothing to decide")
            event = {"kind": "answer", "image": image, "answers": votes.checked(answers, wanted)}
            self._record({**event, "at": self._clock(), "rater": who, "role": role})

    def skip(self, who: str, image: str) -> None:
        """Leave an image for later."""
        self.path(image)
        self._record({"kind": "skip", "role": "rater", "rater": who, "image": image, "at": self._clock()})

    def undo(self, who: str, role: Role = "rater") -> None:
        """Take a person's last answer (or decision, or skip) back; nothing happens when there is none."""
        with self._lock:
            if self.board.sheet(who, role).past:
                self._record({"kind": "undo", "role": role, "rater": who, "at": self._clock()})

    def again(self, who: str) -> None:
        """Put a rater's skipped images back into their queue."""
        self._record({"kind": "again", "role": "rater", "rater": who, "at": self._clock()})

    # --- what the page is told ---------------------------------------------------------------------------------------------------

    def state(self, who: str | None) -> dict[str, Any]:
        """Progress, and the image to look at now. Never where an image comes from: a rater must not know the method."""
        with self._lock:
            board = self.board
            known = sorted({*self.allowed, *board.raters, *board.deciders})
            found: dict[str, Any] = {
                "themes": [{"name": name, "keywords": words} for name, words in board.themes.items()],
                "raters": self.allowed or known,
                "open": not self.allowed,
                "rater": who,
                "total": len(self.here),
            }
            if who is None:
                return found
            sheet = board.sheet(who)
            queue = board.queue(who, self.here)
            unsure = sum("unsure" in given.answers.values() for given in sheet.given.values())
            return found | {
                "done": sum(image in sheet.given for image in self.here),
                "skipped": sum(image in self.here for image in sheet.skipped),
                "unsure": unsure,
                "image": queue[0] if queue else None,
                "undo": len(sheet.past),
                "before": sheet.undone[1].answers
                if sheet.undone and queue[:1] == [sheet.undone[0]]
                else None,
                "disputes": sum(image in self.here for image, _, _ in board.disputes()),
            }

    def disputes(self, who: str) -> dict[str, Any]:
        """The images that raters disagree about, and only those: themes, counts of answers, what was decided."""
        with self._lock:
            rows = [
                {"image": image, "themes": {t: self._counts(image, t) for t in themes}, "decided": decided}
                for image, themes, decided in self.board.disputes()
                if image in self.here
            ]
            return {"disputes": rows, "undo": len(self.board.sheet(who, "adjudicator").past)}

    def _counts(self, image: str, theme: str) -> dict[str, int]:
        given = [sheet.given[image] for sheet in self.board.raters.values() if image in sheet.given]
        said: Counter[str] = Counter(one.answers[theme] for one in given)
        return {answer: said[answer] for answer in votes.ANSWERS}

    # --- votes of others -----------------------------------------------------------------------------------------------------------

    def take(self, said: Iterable[Vote], places: Mapping[str, Iterable[Place]]) -> Counter[str]:
        """Take votes in that were given elsewhere. Counts of those "new", "same" as here, and "kept": answered otherwise here by the same
        person, whose answer here stays."""
        grouped: dict[tuple[str, str, Role, str], dict[str, str]] = {}
        for vote in said:
            grouped.setdefault((vote.image, vote.rater, vote.role, vote.at), {})[vote.theme] = vote.answer
        counts: Counter[str] = Counter(new=0, same=0, kept=0)
        events: list[dict[str, Any]] = []
        with self._lock:
            for image, found in places.items():
                unseen = sorted(set(found) - self.board.places.get(image, set()))
                if unseen or image not in self.board.places:
                    events.append(_picture(image, unseen))
            for (image, rater, role, at), answers in grouped.items():
                known = self.board.sheet(rater, role).given.get(image)
                if known is None:
                    wanted = self.board.themes if role == "rater" else answers
                    given = votes.checked(answers, wanted)
                    event = {"kind": "answer", "image": image, "answers": given, "at": at, "imported": True}
                    events.append({**event, "rater": votes.rater_name(rater), "role": role})
                    counts["new"] += len(given)
                else:
                    same = sum(known.answers.get(theme) == answer for theme, answer in answers.items())
                    counts["same"] += same
                    counts["kept"] += len(answers) - same
            self._record(*events)
        return counts


def _picture(image: str, places: Iterable[Place]) -> dict[str, Any]:
    return {
        "kind": "picture",
        "image": image,
        "places": [[place.key, place.place, place.image_id] for place in places],
    }
