"""Votes as files: there and back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from palimpsest.annotate import exchange
from palimpsest.annotate.board import Place
from palimpsest.annotate.session import Session
from tests.annotate.conftest import HOSTILE, THEMES, Begin, pictures, yes


@pytest.fixture
def session(begin: Begin) -> Session:
    """Two raters and a decision; one image was met twice, once under a hostile name."""
    session = begin(5, clock=lambda: "2026-01-02T03:04:05Z")
    pixels, _ = pictures(1)[0]
    session.add([(pixels, Place("", "folder", HOSTILE)), (pixels, Place("", "folder", "=1+1"))])
    for number, image in enumerate(sorted(session.here)):
        session.answer("ann", image, yes("glitch"))
        session.answer(
            "=Zoë 'q', \"x\"", image, yes() if number % 2 else {**yes("glitch"), "uncased": "unsure"}
        )
    session.answer("eve", sorted(session.here)[1], {"glitch": "yes"}, "adjudicator")
    return session


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_there_and_back(session: Session, ending: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    count = exchange.write(session.board, first)
    assert count == 2 * 5 * 2 + 1
    found = exchange.read(first)
    assert len(found.votes) == count
    other = Session(tmp_path / "other", THEMES)
    assert other.take(found.votes, found.places) == {"new": count, "same": 0, "kept": 0}
    assert exchange.write(other.board, second) == count
    assert second.read_bytes() == first.read_bytes()
    assert exchange.read(second) == found
    assert other.board.votes() == session.board.votes()
    assert other.board.places == session.board.places
    assert other.board.conflicts == session.board.conflicts
    assert other.take(found.votes, found.places) == {"new": 0, "same": count, "kept": 0}
    other.close()


def test_taking_in_is_nothing_to_undo_and_needs_no_images(session: Session, tmp_path: Path) -> None:
    exchange.write(session.board, tmp_path / "a.csv")
    found = exchange.read(tmp_path / "a.csv")
    other = Session(tmp_path / "other", THEMES)
    other.take(found.votes, found.places)
    assert other.state("ann")["undo"] == 0
    assert other.state("ann")["total"] == 0
    other.add(pictures(5))
    assert (other.state("ann")["total"], other.state("ann")["done"]) == (5, 5)
    other.close()


def test_what_somebody_said_here_stays(session: Session, tmp_path: Path) -> None:
    exchange.write(session.board, tmp_path / "a.csv")
    image = sorted(session.here)[0]
    session.answer("ann", image, yes("uncased"))
    found = exchange.read(tmp_path / "a.csv")
    counts = session.take(found.votes, found.places)
    assert (counts["new"], counts["kept"]) == (0, 2)
    assert session.board.sheet("ann").given[image].answers == yes("uncased")


def test_no_cell_of_the_csv_is_a_formula(session: Session, tmp_path: Path) -> None:
    exchange.write(session.board, tmp_path / "a.csv")
    frame = pl.read_csv(tmp_path / "a.csv", infer_schema=False)
    values = {value for column in frame for value in column.to_list() if value}
    assert "'=1+1" in values
    assert not [value for value in values if value[0] in "=+-@\t\r"]


def test_votes_made_by_hand_need_four_columns(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_text(f"image,theme,rater,answer\n{'a' * 64},glitch,ann,yes\n{'b' * 64},glitch,ann,unsure\n")
    found = exchange.read(path)
    assert [(v.answer, v.role, v.at) for v in found.votes] == [("yes", "rater", ""), ("unsure", "rater", "")]
    assert not any(found.places.values())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("../../x,glitch,ann,yes", "no digest"),
        (f"{'A' * 64},glitch,ann,yes", "no digest"),
        (f"{'a' * 64},glitch,ann,perhaps", "'perhaps' is none; allowed: .*unsure"),
        (f"{'a' * 64},,ann,yes", "no theme"),
        (f"{'a' * 64},glitch,,yes", "printable"),
        (f"{'b' * 64},glitch,ann,no", "answered twice about 'glitch'"),
    ],
)
def test_rows_that_are_no_votes_are_named(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "v.csv"
    path.write_text(f"image,theme,rater,answer\n{'b' * 64},glitch,ann,yes\n{row}\n")
    with pytest.raises(exchange.BadVotes, match=said):
        exchange.read(path)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(exchange.BadVotes, match="the ending decides"):
        exchange.read(tmp_path / "v.xlsx")
    with pytest.raises(FileNotFoundError, match="dvc pull"):
        exchange.read(tmp_path / "v.parquet")
    (tmp_path / "v.csv").write_text("image,label\nx,y\n")
    with pytest.raises(exchange.BadVotes, match=r"no columns \['theme', 'rater', 'answer'\]"):
        exchange.read(tmp_path / "v.csv")
