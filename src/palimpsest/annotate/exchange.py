"""Votes as Parquet or CSV: what is shared with others, and what the table of classifiers is made from.

One row per vote and place of its image. An image that was met at several places (two methods may draw the very same picture) has its
votes once for each; reading brings them together again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from palimpsest import store
from palimpsest.annotate.board import Board, Place
from palimpsest.annotate.votes import ANSWERS, DIGEST, ROLES, Answer, Role, Vote, rater_name

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("image", "key", "place", "image_id", "theme", "rater", "role", "answer", "at")
NEEDED = ("image", "theme", "rater", "answer")
ENDINGS = (".parquet", ".csv")
SHOWN = 5


class BadVotes(ValueError):
    """A file of votes that cannot be used; the message lists what is wrong."""


@dataclass(frozen=True)
class Votes:
    """The votes of a file, and where their images were met."""

    votes: tuple[Vote, ...]
    places: Mapping[str, frozenset[Place]]


def write(board: Board, path: Path) -> int:
    """Write every vote that stands; returns how many there are. The ending decides: .parquet or .csv. Equal boards give equal bytes."""
    import polars as pl

    _check_ending(path)
    said = board.votes()
    rows = [
        (v.image, place.key, place.place, place.image_id, v.theme, v.rater, v.role, v.answer, v.at)
        for v in said
        for place in sorted(board.places.get(v.image) or {Place("", "", "")})
    ]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS, pl.String), orient="row").sort(COLUMNS)
    if path.suffix == ".csv":
        # names come from outside, and spreadsheets run what starts like a formula
        safe = frame.with_columns(_guarded(name) for name in ("image_id", "rater"))
        with store.atomic(path) as part:
            safe.write_csv(part)
    else:
        store.write_parquet(frame, path, {"votes": len(said), "themes": board.themes})
    return len(said)


def _guarded(name: str) -> pl.Expr:
    import polars as pl

    column = pl.col(name)
    formula = column.str.contains(r"^['=+\-@\t\r]")
    return pl.when(formula).then("'" + column).otherwise(column).alias(name)


def read(path: Path) -> Votes:
    """The votes of a file. Raises BadVotes listing what is wrong, FileNotFoundError with what to do."""
    _check_ending(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not here; `dvc pull {path}` brings shared labels")
    frame = _frame(path)
    problems: list[str] = []
    said: dict[Vote, None] = {}
    places: dict[str, set[Place]] = {}
    for number, row in enumerate(frame.iter_rows(named=True), 1):
        try:
            vote = _vote(row)
        except ValueError as error:
            problems.append(f"row {number}: {error}")
            continue
        said[vote] = None
        found = places.setdefault(vote.image, set())
        if row["key"] or row["place"] or row["image_id"]:
            found.add(Place(row["key"], row["place"], row["image_id"]))
    problems += _twice(list(said))
    if problems:
        more = f"; {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise BadVotes(f"{path}: {'; '.join(problems[:SHOWN])}{more}")
    return Votes(tuple(said), {image: frozenset(found) for image, found in places.items()})


def _frame(path: Path) -> pl.DataFrame:
    """All columns as text, those that are missing empty."""
    import polars as pl

    if path.suffix == ".csv":
        try:
            frame = pl.read_csv(path, infer_schema=False, glob=False)
        except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
            raise BadVotes(f"{path} cannot be read as CSV: {error}") from error
        known = [name for name in ("image_id", "rater") if name in frame.columns]
        frame = frame.with_columns(pl.col(name).str.replace(r"^'(['=+\-@\t\r])", "$1") for name in known)
    else:
        frame = store.read_parquet(path)
    lacking = [name for name in NEEDED if name not in frame.columns]
    if lacking:
        raise BadVotes(f"{path}: no columns {lacking}; needed are {list(NEEDED)}, allowed {list(COLUMNS)}")
    columns = [
        pl.col(name).cast(pl.String).fill_null("") if name in frame.columns else pl.lit("").alias(name)
        for name in COLUMNS
    ]
    return frame.select(columns)


def _vote(row: Mapping[str, Any]) -> Vote:
    role, answer = row["role"] or "rater", row["answer"]
    if not DIGEST.fullmatch(row["image"]):
        raise ValueError(f"image {row['image'][:80]!r} is no digest of 64 hexadecimal digits")
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none; allowed: {list(ROLES)}")
    if answer not in ANSWERS:
        raise ValueError(f"answer {answer!r} is none; allowed: {list(ANSWERS)}")
    if not row["theme"]:
        raise ValueError("no theme")
    who = rater_name(row["rater"])
    return Vote(row["image"], row["theme"], who, cast(Role, role), cast(Answer, answer), row["at"])


def _twice(said: Sequence[Vote]) -> list[str]:
    """Votes of one person about one image and theme that are not the same."""
    seen: dict[tuple[str, ...], Vote] = {}
    found = []
    for vote in said:
        key = (vote.image, vote.theme, vote.rater, vote.role)
        if key in seen:
            found.append(f"{vote.rater!r} answered twice about {vote.theme!r} of image {vote.image[:12]}")
        seen[key] = vote
    return found


def _check_ending(path: Path) -> None:
    if path.suffix not in ENDINGS:
        raise BadVotes(f"{path}: the ending decides the format; allowed: {list(ENDINGS)}")
