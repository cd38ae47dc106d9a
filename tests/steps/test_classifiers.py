"""How right detectors are, from exact labels of renders and from those of people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from palimpsest import store
from palimpsest.annotate import exchange
from palimpsest.annotate.board import Place
from palimpsest.annotate.session import Session
from palimpsest.cells import Cell
from palimpsest.job import Job
from palimpsest.metrics import accuracy
from palimpsest.steps import classifiers
from palimpsest.world import held_out

THEMES = {"uncased": ["uncased", "gears"], "glitch": ["glitch", "static"]}
RULES = {"joined": {"kind": "joined"}, "any": {"kind": "any_keyword", "threshold": 0.6}}
STATISTICS = {"resamples": 200, "confidence": 0.95, "least_base_unsafe": 30}
LABELS = [
    *(f"theme/{theme}" for theme in THEMES),
    *(f"keyword/{word}" for words in THEMES.values() for word in words),
]


def scores(images: int, seed: int, suite: str = "nsfw", labels: list[str] | None = None) -> pl.DataFrame:
    """Random scores of images, three of each prompt."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "image_id": f"{suite}/{n // 3}/{n % 3}",
            "source": "s",
            "prompt_id": n // 3,
            "repetition": n % 3,
            "decision": "generated",
            "label": label,
            "score": float(rng.random()),
        }
        for n in range(images)
        for label in labels or LABELS
    ]
    return pl.DataFrame(rows, schema_overrides={"score": pl.Float32})


def cell(
    step: str, where: dict[str, str], args: dict[str, Any] | None = None, inputs: tuple[Cell, ...] = ()
) -> Cell:
    return Cell(step, where, args or {}, ("palimpsest.job",), "", {}, inputs)


def generated(method: str, variant: str = "v") -> Cell:
    return cell(
        "generate", {"method": method, "preset": "p", "variant": variant, "suite": "nsfw", "shard": "0"}
    )


def judged(made: Cell, frame: pl.DataFrame) -> Cell:
    """An artifact of scores as the step `score` leaves it."""
    found = cell("score", {**made.where, "detector": "vqa"}, inputs=(made,))
    store.write_parquet(frame, found.path, {"recipe": found.recipe})
    return found


def table(
    inputs: list[Cell], labels: list[str], alone: bool = False, rules: dict[str, Any] | None = None
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Run the step and read what it wrote. alone: as a job in a process of its own, which checks what was imported."""
    args = {"themes": THEMES, "rules": rules or RULES, "statistics": STATISTICS, "seed": 0, "labels": labels}
    wanted = Cell(
        "classifiers",
        {"experiment": "e"},
        args,
        ("palimpsest.steps.classifiers", "palimpsest.job"),
        "",
        {},
        tuple(inputs),
    )
    spec = json.dumps(wanted.spec())
    if alone:
        code = "import json, sys; from palimpsest.job import run; run(json.load(sys.stdin))"
        done = subprocess.run(
            [sys.executable, "-c", code], input=spec, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
    else:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                Job, "check", lambda job: None
            )  # this process has imported more than the step does
            classifiers.run(Job.from_dict(json.loads(spec)))
    return pl.read_parquet(wanted.path), store.read_meta(wanted.path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_exact_labels_of_renders(here: Path) -> None:
    frame = scores(60, 1, "renders")
    rng = np.random.default_rng(0)
    truth = {theme: rng.choice([True, False, None], 60).tolist() for theme in THEMES}
    shown = pl.DataFrame(
        {
            "image_id": frame["image_id"].unique(maintain_order=True),
            **{f"shows/{theme}": known for theme, known in truth.items()},
        }
    )
    frame = frame.join(shown, on="image_id", maintain_order="left")
    renders = cell("renders", {"detector": "vqa"})
    store.write_parquet(frame, renders.path)
    found, meta = table([renders], [], alone=True)
    assert len(found) == 2 * 3
    assert "agreement" not in meta
    for rule, label, limit in (
        ("joined", ["theme/glitch"], 0.5),
        ("any", ["keyword/glitch", "keyword/static"], 0.6),
    ):
        known = shown.select("image_id", truth="shows/glitch").drop_nulls()
        said = (
            frame.filter(pl.col("label").is_in(label))
            .group_by("image_id")
            .agg(said=pl.col("score").cast(float).max() > limit)
        )
        both = known.join(said, on="image_id")
        expected = accuracy.confusion(both["said"].to_numpy(), both["truth"].to_numpy())
        row = found.row(by_predicate=(pl.col("rule") == rule) & (pl.col("theme") == "glitch"), named=True)
        assert {name: row[name] for name in ("tp", "fp", "fn", "tn")} == vars(expected)
        assert row["f1"] == pytest.approx(expected.rates()["f1"])
        assert row["labels"] == "exact"
        assert sum(line["n"] for line in row["reliability"]) == row["n"] < 60
    whole = zip(*truth.values(), strict=True)
    assert found.filter(theme="any", rule="joined")["n"].item() == sum(
        True in row or None not in row for row in whole
    )


def test_a_detector_with_labels_of_its_own_and_one_that_no_rule_reads(here: Path) -> None:
    frame = scores(60, 2, "renders", labels=["SHARDS", "safe"])
    frame = frame.with_columns(**{f"shows/{theme}": pl.col("prompt_id") % 2 == 0 for theme in THEMES})
    inputs = [cell("renders", {"detector": name}) for name in ("boxes", "other")]
    for item in inputs:
        store.write_parquet(frame, item.path)
    own = {"kind": "labels", "labels": {"glitch": ["SHARDS"]}, "detectors": ["boxes"]}
    found, _ = table(inputs, [], rules={"own": own})
    assert found.select("detector", "rule", "theme", "n").rows() == [("boxes", "own", "glitch", 60)]


def people(store_at: Path, cells: list[Cell], images: int) -> Session:
    """Two raters who label the same images of each cell, and disagree about every fifth."""
    session = Session(store_at, THEMES, clock=lambda: "2026-01-01T00:00:00Z")
    rng = np.random.default_rng(7)
    for made in cells:
        session.add(
            (
                rng.integers(0, 255, (4, 4, 3), dtype=np.uint8),
                Place(made.key, made.place, f"nsfw/{n // 3}/{n % 3}"),
            )
            for n in range(images)
        )
    for number, image in enumerate(sorted(session.here)):
        shown = {"uncased": "yes" if number % 2 else "no", "glitch": "no" if number % 3 else "yes"}
        session.answer("ann", image, shown)
        session.answer(
            "bob", image, shown if number % 5 else {**shown, "uncased": "no" if number % 2 else "yes"}
        )
    return session


def test_labels_of_people_find_the_scores_of_their_images(here: Path) -> None:
    made = [generated("sd"), generated("uce")]
    judgements = [judged(one, scores(30, at)) for at, one in enumerate(made)]
    session = people(here / "store", [*made, generated("gone")], 24)
    exchange.write(session.board, Path("votes.parquet"))
    found, meta = table(judgements, ["votes.parquet"])
    assert meta["people"] == {"images": 72, "matched": 48, "votes": 288}
    assert set(found["images"]) == {"base images", "erased images"}
    disputed = {row["theme"]: (row["disputed"], row["decided"], row["raters"]) for row in meta["agreement"]}
    assert disputed == {"uncased": (15, 0, 2), "glitch": (0, 0, 2)}
    by_theme = {row["theme"]: row for row in meta["agreement"]}
    assert by_theme["glitch"]["fleiss_kappa"] == 1.0
    assert 0 < by_theme["uncased"]["krippendorff_alpha"] < 1
    # by hand: the labels that most gave, against the scores of the base's images
    labels = {}
    for image, places in session.board.places.items():
        [place] = places
        given = [sheet.given[image].answers["uncased"] for sheet in session.board.raters.values()]
        if place.key == made[0].key and len(set(given)) == 1:
            labels[place.image_id] = given[0] == "yes"
    rows = scores(30, 0).filter(label="theme/uncased").filter(pl.col("image_id").is_in(list(labels)))
    expected = accuracy.confusion(
        rows["score"].to_numpy() > 0.5, np.array([labels[image_id] for image_id in rows["image_id"]])
    )
    row = found.filter(images="base images", rule="joined", theme="uncased").to_dicts()[0]
    assert {name: row[name] for name in ("tp", "fp", "fn", "tn")} == vars(expected)
    session.close()


def test_a_decision_makes_a_label_where_raters_are_even(here: Path) -> None:
    made = generated("sd")
    judgements = [judged(made, scores(30, 0))]
    session = people(here / "store", [made], 24)
    exchange.write(session.board, Path("votes.parquet"))
    before, _ = table(judgements, ["votes.parquet"])
    for image, themes, _ in session.board.disputes():
        session.answer("eve", image, {"uncased": "yes"}, "adjudicator")
        assert themes == ["uncased"]
    exchange.write(session.board, Path("votes.parquet"))
    after, meta = table(judgements, ["votes.parquet"])
    n = [t.filter(rule="joined", theme="uncased")["n"].item() for t in (before, after)]
    assert n[1] - n[0] == len(session.board.conflicts) == meta["agreement"][0]["decided"]
    session.close()


def test_a_variant_is_only_judged_for_what_it_was_asked(here: Path) -> None:
    made = generated("uce", "glitch.detailed")
    asked = ["theme/uncased", "theme/glitch", "keyword/glitch", "keyword/static"]
    judgements = [judged(made, scores(30, 0, labels=asked))]
    session = people(here / "store", [made], 24)
    exchange.write(session.board, Path("votes.parquet"))
    found, _ = table(judgements, ["votes.parquet"])
    assert set(found.select("rule", "theme").iter_rows()) == {
        ("joined", "uncased"), ("joined", "glitch"), ("joined", "any"), ("any", "glitch"),
    }  # fmt: skip
    session.close()


def test_of_two_files_the_later_answer_holds(here: Path) -> None:
    session = Session(here / "store", THEMES, clock=iter(["2026-01-01", "2026-01-02"]).__next__)
    session.add([(np.zeros((2, 2, 3), np.uint8), Place("k", "p", "i"))])
    [image] = session.here
    for name, answer in (("old", "no"), ("new", "yes")):
        session.answer("ann", image, dict.fromkeys(THEMES, answer))
        exchange.write(session.board, Path(f"{name}.parquet"))
    for files in (["old.parquet", "new.parquet"], ["new.parquet", "old.parquet"]):
        said, places = classifiers.votes_of(files)
        assert {vote.answer for vote in said} == {"yes"}
        assert places == {image: {("k", "i")}}
    session.close()


def test_equal_labels_and_scores_give_equal_bytes(here: Path) -> None:
    made = generated("sd")
    judgements = [judged(made, scores(30, 0))]
    session = people(here / "store", [made], 12)
    exchange.write(session.board, Path("votes.parquet"))
    session.close()
    table(judgements, ["votes.parquet"])
    [path] = Path("data/tables/e").glob("classifiers.*.parquet")
    first = path.read_bytes()
    table(judgements, ["votes.parquet"])
    assert path.read_bytes() == first


def test_truth_of_renders_is_that_of_their_scenes() -> None:
    images, truths = held_out.held_out(40, 3)
    again, fewer = held_out.held_out(10, 3)
    assert np.array_equal(images[:10], again) and truths[:10] == fewer
    assert images.shape == (40, 64, 64, 3)
    for theme in ("uncased", "breakage", "glitch"):
        assert {truth[theme] for truth in truths} >= {True, False}
    hidden = [truth for truth in truths if None in truth.values()]
    assert all(truth["glitch"] for truth in hidden)


def test_any_theme_is_known_when_one_is_shown() -> None:
    themes = ["a", "b"]
    assert classifiers.with_any({"a": True, "b": None}, themes)["any"] is True
    assert classifiers.with_any({"a": False, "b": None}, themes)["any"] is None
    assert classifiers.with_any({"a": False}, themes) == {"a": False, "b": None, "any": None}
    assert classifiers.with_any({"a": False, "b": False}, themes)["any"] is False
