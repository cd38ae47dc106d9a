"""Raters, orders, undoing, disagreements; and that a board is nothing but its journal."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from palimpsest.annotate import board, journal, votes
from palimpsest.annotate.session import JOURNAL, OtherThemes, Session
from tests.annotate.conftest import THEMES, Begin, pictures, yes


def replayed(session: Session) -> board.Board:
    return board.replay(journal.read(session.journal.path))


def test_every_rater_has_an_order_of_their_own_that_stays(begin: Begin) -> None:
    session = begin(30, seed=4)
    orders = {who: session.board.queue(who, session.here) for who in ("ann", "bob")}
    assert orders["ann"] != orders["bob"]
    assert set(orders["ann"]) == set(orders["bob"]) == session.here
    session = begin(30, seed=4)
    assert session.board.queue("ann", session.here) == orders["ann"]
    other = Session(session.images.parent.parent / "other", THEMES, seed=5)
    other.add(pictures(30))
    assert other.board.queue("ann", other.here) != orders["ann"]
    other.close()


def test_a_seed_is_that_of_the_beginning(begin: Begin) -> None:
    first = begin(8, seed=1)
    order = first.board.queue("ann", first.here)
    again = begin(8, seed=2)
    assert again.board.queue("ann", again.here) == order


def test_answers_are_counted_and_the_next_image_comes(begin: Begin) -> None:
    session = begin(3)
    following = session.board.queue("ann", session.here)[1]
    state = session.state("ann")
    assert (state["done"], state["total"]) == (0, 3)
    session.answer("ann", state["image"], yes("glitch"))
    after = session.state("ann")
    assert (after["done"], after["image"]) == (1, following)
    assert session.state("bob")["done"] == 0
    assert {(v.theme, v.answer) for v in session.board.votes()} == {("uncased", "no"), ("glitch", "yes")}


def test_undo_brings_the_image_and_its_answers_back(begin: Begin) -> None:
    session = begin(4)
    images = session.board.queue("ann", session.here)
    session.answer("ann", images[0], yes("uncased"))
    session.skip("ann", images[1])
    session.answer("ann", images[2], yes())
    session.undo("ann")
    assert (session.state("ann")["image"], session.state("ann")["before"]) == (images[2], yes())
    session.undo("ann")
    assert (session.state("ann")["image"], session.state("ann")["skipped"]) == (images[1], 0)
    session.undo("ann")
    assert session.state("ann")["before"] == yes("uncased")
    session.undo("ann")
    assert session.state("ann")["undo"] == 0
    assert replayed(session).votes() == []


def test_undo_restores_what_an_answer_replaced(begin: Begin) -> None:
    session = begin(2)
    image = session.board.queue("ann", session.here)[0]
    session.answer("ann", image, yes("glitch"))
    session.answer("ann", image, yes("uncased"))
    session.undo("ann")
    assert session.board.sheet("ann").given[image].answers == yes("glitch")


def test_skipped_images_come_back_when_asked_for(begin: Begin) -> None:
    session = begin(2)
    for image in session.board.queue("ann", session.here):
        session.skip("ann", image)
    assert session.state("ann")["image"] is None
    session.again("ann")
    assert session.state("ann")["image"] is not None


def test_a_board_is_what_its_journal_says(begin: Begin) -> None:
    session = begin(5)
    images = sorted(session.here)
    for place, image in enumerate(images):
        session.answer("ann", image, yes("glitch") if place % 2 else yes())
        session.answer("bob", image, yes("glitch"))
    session.undo("bob")
    session.skip("bob", images[-1])
    session.answer("eve", images[0], {"glitch": "no"}, "adjudicator")
    assert replayed(session) == session.board
    assert session.board.conflicts == votes.disputed(session.board.votes())


def test_only_disagreements_can_be_decided(begin: Begin) -> None:
    session = begin(3)
    first, second, third = sorted(session.here)
    for image, answer in ((first, yes("glitch")), (second, yes()), (third, {**yes(), "glitch": "unsure"})):
        session.answer("ann", image, yes())
        session.answer("bob", image, answer)
    listed = session.disputes("eve")["disputes"]
    assert [(row["image"], row["themes"]) for row in listed] == [
        (first, {"glitch": {"yes": 1, "no": 1, "unsure": 0}})
    ]
    with pytest.raises(ValueError, match="do not disagree"):
        session.answer("eve", second, yes(), "adjudicator")
    assert votes.labels(session.board.votes())[first, "glitch"] is None
    with pytest.raises(ValueError, match=r"each theme is needed: \['glitch'\]"):
        session.answer("eve", first, yes("glitch"), "adjudicator")
    session.answer("eve", first, {"glitch": "yes"}, "adjudicator")
    labels = votes.labels(session.board.votes())
    assert (labels[first, "glitch"], labels[first, "uncased"]) == (True, False)
    session.undo("eve", "adjudicator")
    assert votes.labels(session.board.votes())[first, "glitch"] is None


def test_majority_and_ties() -> None:
    def said(*answers: str) -> bool | None:
        given = [votes.Vote("i", "t", f"r{n}", "rater", a, "") for n, a in enumerate(answers)]  # type: ignore[arg-type]
        return votes.labels(given)["i", "t"]

    assert said("yes", "yes", "no") is True
    assert said("yes", "no", "no") is False
    assert said("yes", "no") is None
    assert said("unsure", "unsure", "no") is False
    assert said("unsure") is None


def test_equal_pictures_are_labelled_once(begin: Begin) -> None:
    session = begin(3)
    pixels, place = pictures(1)[0]
    elsewhere = board.Place("fedcba9876543210", "other/p/v/s/0", place.image_id)
    assert session.add([(pixels, elsewhere)]) == 0
    assert len(session.here) == 3
    assert elsewhere in set.union(*replayed(session).places.values())


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 61, "\u202e\u0000", None, 7])
def test_names_that_are_none(begin: Begin, name: object) -> None:
    with pytest.raises(ValueError, match="printable"):
        begin(1).rater(name)


def test_named_raters_are_the_only_ones(begin: Begin) -> None:
    session = begin(1, raters=["ann", "bob"])
    assert session.rater(" ann ") == "ann"
    with pytest.raises(ValueError, match="allowed: .*bob"):
        session.rater("eve")


def test_a_store_of_other_themes_is_refused(begin: Begin, tmp_path: Path) -> None:
    begin(1).close()
    with pytest.raises(OtherThemes, match="--store"):
        Session(tmp_path / "store", {"horror": ["horror"]})


def test_many_at_once_lose_nothing(begin: Begin) -> None:
    session = begin(12)

    def work(who: str) -> None:
        for image in session.board.queue(who, session.here):
            session.answer(who, image, yes("glitch"))

    threads = [threading.Thread(target=work, args=(f"r{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(session.board.votes()) == 6 * 12 * 2
    assert replayed(session) == session.board


def test_the_state_says_nothing_about_methods(begin: Begin) -> None:
    session = begin(2)
    for image in session.here:
        session.answer("ann", image, yes())
        session.answer("bob", image, yes("glitch"))
    told = json.dumps([session.state("eve"), session.state(None), session.disputes("eve")])
    assert "secretmethod" not in told
    assert "0123456789abcdef" not in told
    assert (session.images.parent / JOURNAL).is_file()
