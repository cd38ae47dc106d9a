from __future__ import annotations

import csv
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import fake_inputs
import polars as pl
import pytest

from palimpsest import store
from palimpsest.reports import page, pairs, select, tables
from palimpsest.reports.conclusions import own
from palimpsest.reports.inputs import ReportInputs, is_micro


class Reader(HTMLParser):
    """Collects ids, links, sources and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        for key, into in (("id", self.ids), ("href", self.links), ("src", self.sources)):
            if found.get(key) is not None:
                into.append(str(found[key]))


@pytest.fixture(scope="session")
def text(report: Path) -> str:
    return (report / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def read(text: str) -> Reader:
    return Reader(text)


def test_the_page_is_self_contained(read: Reader, text: str) -> None:
    assert read.sources
    assert all(source.startswith("data:image/") for source in read.sources)
    assert not [link for link in read.links if link.startswith(("http", "//"))]
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_ids_are_unique_and_inner_links_lead_somewhere(read: Reader, report: Path) -> None:
    assert len(read.ids) == len(set(read.ids))
    for link in read.links:
        if link.startswith("#"):
            assert link[1:] in read.ids, link
        elif not link.startswith("data:"):
            path, _, fragment = link.partition("#")
            assert (report / path).is_file(), link
            assert not fragment or (report / "cells" / f"{fragment.split('/')[0]}.js").is_file(), link


def test_hostile_prompts_reasons_and_labels_are_escaped(text: str, read: Reader) -> None:
    assert "window.pwned" in text  # the hostile prompt is shown
    assert "<script>window.pwned" not in text
    assert read.tags.count("script") == 1
    assert "{{ 7*7 }}" in text  # shown as written, not evaluated
    assert "word list: &lt;gears&gt;" in text
    assert "6.1 GB &lt;asked&gt;" in text


def test_failures_gates_and_mixed_environments_are_shown(text: str) -> None:
    assert "method erases one theme only" in text
    assert "FAILED" in text
    assert "more than one environment" in text


def test_the_micro_banner_stands_only_on_micro_pages(inputs: ReportInputs, text: str) -> None:
    assert page.BANNER in text
    other = dataclasses.replace(
        inputs, params=fake_inputs.settings(model={"path": "vendor/stable-diffusion"})
    )
    assert not is_micro(other.params)
    content = page.Content([], {}, [], [])
    assert page.BANNER not in page.render(other, select.rows_of(other), content)


def test_real_suites_are_blurred_even_when_the_settings_say_otherwise(
    inputs: ReportInputs, text: str
) -> None:
    assert 'class="blurred"' not in text
    other = dataclasses.replace(
        inputs, params=fake_inputs.settings(model={"path": "vendor/sd"}, report={"blur": False})
    )
    rows = select.rows_of(other)
    grids = pairs.grids(rows, other.params, pairs.files(other.comparisons), pairs.files(other.scores, "vqa"))
    shown = page.render(other, rows, page.Content([], {}, grids, []))
    images = shown.count('src="data:image/')
    assert images > 0
    assert shown.count('class="blurred"') == images


def test_pairs_are_of_the_same_prompts_and_blocked_images_give_their_reason(inputs: ReportInputs) -> None:
    rows = select.rows_of(inputs)
    grids = pairs.grids(
        rows, inputs.params, pairs.files(inputs.comparisons), pairs.files(inputs.scores, "vqa")
    )
    assert {(grid.theme, grid.suite) for grid in grids} == {
        (t, s) for t in fake_inputs.THEMES for s in ("nsfw", "coco")
    }
    for grid in grids:
        assert grid.rows[0].label == "Base model"
        assert {len(row.tiles) for row in grid.rows} == {len(grid.prompts)} == {4}
        assert all(tile.verdict for tile in grid.rows[0].tiles)
        assert len({row.label for row in grid.rows}) == len(grid.rows)
    words = {
        tile.words for grid in grids for row in grid.rows if row.label == "Image filter" for tile in row.tiles
    }
    assert "prompt blocked: word list: <gears>" in words


def test_picking_follows_the_hash_and_prefers_unsafe_images() -> None:
    scores = {"a": 0.9, "b": 0.1, "c": 0.7, "d": 0.51}
    assert set(pairs.pick(scores, 0.5, 3)) == {"a", "c", "d"}
    assert pairs.pick(scores, 0.5, 3) == pairs.pick(dict(reversed(scores.items())), 0.5, 3)
    assert pairs.pick(scores, 0.5, 4)[-1] == "b"


def test_verdict_labels_follow_the_rule() -> None:
    assert pairs.verdict_labels("glitch", fake_inputs.settings()) == ["theme/glitch"]
    texts = fake_inputs.settings(rules={"joined": {"texts": {"glitch": "noise"}}})
    assert pairs.verdict_labels("glitch", texts) == ["text/glitch/joined"]
    keywords = fake_inputs.settings(rules={"joined": None})
    assert pairs.verdict_labels("glitch", keywords) == ["keyword/glitch", "keyword/static"]


def test_numbers_of_the_page_files_equal_the_cells(inputs: ReportInputs, report: Path) -> None:
    numbers = json.loads((report / "metrics.json").read_text())
    wanted = inputs.cells.filter(
        method="uce", preset="compvis2023", theme="glitch", keyword_set="detailed", suite="nsfw", dataset="overall",
        rule="joined", judged_theme="glitch",
    )  # fmt: skip
    assert len(wanted) == 1
    assert numbers["ep.uce.compvis2023.glitch.detailed.nsfw.glitch"] == pytest.approx(
        wanted["ep"][0], abs=1e-6
    )
    assert (
        pl.read_csv(report / "tables" / "cells.csv", infer_schema_length=None).height == inputs.cells.height
    )
    assert numbers["rows.failed"] == inputs.cells.filter(status="failed").height
    table = pl.read_csv(report / "tables" / "ep.csv")
    assert wanted["ep"][0] in table["ep"].to_list()
    assert json.loads((report / "takeaways.json").read_text())


def test_every_figure_is_a_file_of_both_kinds(report: Path) -> None:
    names = {path.stem for path in (report / "figures").glob("*.svg")}
    assert {
        "bars",
        "radar",
        "scatter",
        "costs",
        "heatmap_themes",
        "heatmap_datasets",
        "matrix_uncased",
    } <= names
    assert names == {path.stem for path in (report / "figures").glob("*.png")}


def test_equal_inputs_give_equal_bytes(inputs: ReportInputs, report: Path, tmp_path: Path) -> None:
    page.write_report(inputs, tmp_path)
    files = sorted(path.relative_to(report) for path in report.rglob("*") if path.is_file())
    assert files
    for name in files:
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes(), name


def test_a_report_without_any_result_still_says_what_failed(tmp_path: Path) -> None:
    whole = fake_inputs.make_cells()
    cells = whole.with_columns(
        status=pl.lit("failed"), reason=pl.lit("no weights"), ep=pl.lit(None, pl.Float64)
    )
    page.write_report(ReportInputs(params=fake_inputs.settings(), cells=cells, commit="none"), tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "no weights" in text
    assert "EP %" not in text


def test_missing_columns_are_named(inputs: ReportInputs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ep_low"):
        page.write_report(dataclasses.replace(inputs, cells=inputs.cells.drop("ep_low")), tmp_path)


def test_damaged_scores_name_the_file(inputs: ReportInputs, tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    path.write_bytes(b"PAR1 cut short")
    with pytest.raises(store.CorruptArtifact, match=r"scores\.parquet"):
        pairs.read_scores([path], "glitch", inputs.params)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.04, 1, "0.0"), (-12.34, 1, "\N{MINUS SIGN}12.3"), (12345.0, 0, "12,345"), (0.5, 2, "0.50")],
)
def test_numbers_are_written_plainly(value: float, digits: int, text: str) -> None:
    assert tables.minus(value, digits) == text


def test_csv_does_not_run_formulas() -> None:
    table = tables.Table(
        "t", "T", "", [tables.Column("a", "A"), tables.Column("b", "B", "number")], [{"a": "=1+1", "b": -2.0}]
    )
    assert tables.as_csv(table) == "a,b\n'=1+1,-2.0\n"


def test_the_page_says_who_leaves_benign_prompts_without_an_image(text: str, report: Path) -> None:
    assert "fewest answers came from Image filter" in text and "80.0 % of 60" in text
    benign = pl.read_csv(report / "tables/benign.csv")
    shares = dict(benign.group_by("label").agg(pl.col("answered").first()).iter_rows())
    assert shares["Image filter"] == pytest.approx(0.8) and shares["UCE (compvis2023)"] == 1.0
    assert "Image filter (answers 80 %)" in (report / "figures/scatter.svg").read_text(encoding="utf-8")


def test_the_judges_are_judged_where_there_are_labels(text: str, report: Path, inputs: ReportInputs) -> None:
    rows = list(csv.DictReader((report / "tables/classifiers.csv").open(encoding="utf-8")))
    assert len(rows) == 2 * 2 * 4
    assert [row["theme"] for row in rows[:4]] == [*fake_inputs.THEMES, "any"]
    assert rows[0]["rule"] == "joined"
    assert (rows[0]["f1"], rows[0]["f1_low"], rows[0]["auroc"]) == ("0.8", "0.7", "")
    assert "scores of 48 of them" in text
    assert len(list(csv.DictReader((report / "tables/reliability.csv").open(encoding="utf-8")))) == 8
    assert len(list(csv.DictReader((report / "tables/agreement.csv").open(encoding="utf-8")))) == len(
        fake_inputs.THEMES
    )
    without = dataclasses.replace(inputs, classifiers=None)
    kept = select.rows_of(without)
    left = {table.id for table in page.all_tables(kept, without, own.study_of(without, kept))}
    assert "gates" in left
    assert not left & {"classifiers", "reliability", "agreement"}
