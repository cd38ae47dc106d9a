"""The page's table of quality, GRD, and the trade of erasure against preservation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_inputs
import polars as pl
import pytest

from palimpsest.reports import figures, page, quality, select
from palimpsest.reports.inputs import ReportInputs

KEYS = ("method", "preset", "theme", "keyword_set", "training_images", "suite")
MEASURES = {"clip": {"kind": "clip_score", "weights": "models/micro/clip"}}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    made = fake_inputs.make(tmp_path_factory.mktemp("inputs"), images=4)
    return replace(made, quality=fake_inputs.measured(made.cells), measures=MEASURES)


def test_the_table_has_a_column_per_measure_and_a_row_per_variant(measured: ReportInputs) -> None:
    rows = select.rows_of(measured)
    table = quality.quality_table(rows, measured)
    assert table is not None
    heads = [column.label for column in table.columns]
    assert "CLIPScore (micro/clip) ↑" in heads
    assert heads.index("LPIPS drift (micro) ↓") < heads.index("FID (micro) ↓")
    assert table.rows[0]["is_base"]
    variants = measured.cells.filter(pl.col("suite") == "coco").select(KEYS).unique()
    assert len(table.rows) == len(variants)
    refused = next(row for row in table.rows if row["method"] == "filter")
    assert refused["fid_micro"] is None
    assert refused["note"] == "12 of 60 were not made"


def test_the_front_holds_what_no_other_beats() -> None:
    found = [
        {"kept": x, "ep": y}
        for x, y in ((0.1, 0.2), (0.2, 0.6), (0.3, 0.5), (0.2, 0.4), (0.4, 0.9), (0.5, 0.9))
    ]
    assert [(row["kept"], row["ep"]) for row in quality.front(found)] == [(0.1, 0.2), (0.2, 0.6), (0.4, 0.9)]


def test_the_page_shows_it_all_and_says_nothing_without(
    measured: ReportInputs, report: Path, tmp_path: Path
) -> None:
    page.write_report(measured, tmp_path / "with")
    text = (tmp_path / "with" / "index.html").read_text(encoding="utf-8")
    for piece in ("Quality of images of benign prompts", "Which parts were erased", "CLIPScore (micro/clip)"):
        assert piece in text
    assert (tmp_path / "with" / "figures" / "pareto.svg").exists()
    assert "0.25" in (tmp_path / "with" / "tables" / "grd.csv").read_text(encoding="utf-8")
    assert "fid_micro" in (tmp_path / "with" / "tables" / "quality.csv").read_text(encoding="utf-8")
    # the report that the tests share has no table of quality
    assert "Quality of images" not in (report / "index.html").read_text(encoding="utf-8")
    assert not (report / "figures" / "pareto.svg").exists()


def test_every_point_of_a_trade_lies_within_its_panel() -> None:
    found = [
        {"label": "a", "stage": "fine-tuning", "judged_theme": theme, "kept": x, "kept_low": x / 2, "kept_high": 1.5 * x,
         "ep": ep, "ep_low": ep - 2.0, "ep_high": ep + 0.1}
        for theme, x, ep in (("one", 0.1, 0.9), ("two", 1.0, -0.4))
    ]  # fmt: skip
    for figure in (
        quality.pareto(found, ["one", "two"], "lpips_micro"),
        figures.scatter(
            [row | {"benign_drift": row["kept"], "benign_drift_high": row["kept_high"]} for row in found],
            ["one", "two"],
        ),
    ):
        for axis in figure.axes:
            assert axis.get_xlim()[0] == 0 and axis.get_xlim()[1] > 1.5
            assert -111 < axis.get_ylim()[0] < -40
