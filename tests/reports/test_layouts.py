from __future__ import annotations

import pytest

from palimpsest.reports import layouts, select
from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.tables import Table, as_csv


@pytest.fixture(scope="module")
def rows(inputs: ReportInputs) -> list[select.Row]:
    """The synthetic rows, with a verdict on any theme for variants of all themes."""
    made = select.rows_of(inputs)
    return made + [
        {**row, "judged_theme": "any"}
        for row in made
        if row["theme"] == "all" and row["judged_theme"] == "breakage"
    ]


@pytest.fixture(scope="module")
def found(inputs: ReportInputs, rows: list[select.Row]) -> dict[str, Table]:
    return {table.id: table for table in layouts.layouts(rows, inputs.params)}


def columns(table: Table) -> list[str]:
    return [column.key for column in table.columns]


def test_every_number_is_the_one_of_the_long_table(
    inputs: ReportInputs, rows: list[select.Row], found: dict[str, Table]
) -> None:
    pooled = {
        (r["label"], r["theme"], r["variant"]): (r["ep"], r["ep_low"], r["ep_high"])
        for r in select.ep_rows(rows, inputs.params)
        if r["judged_theme"] == (r["theme"] if r["theme"] != "all" else "any")
    }
    seen = 0
    for name in ("by_theme_keywords", "by_theme_images"):
        for line in found[name].rows:
            if line["place"] != "overall":
                continue
            for label in columns(found[name])[3:]:
                if label in line:
                    triple = (line[label], line[f"{label}_low"], line[f"{label}_high"])
                    assert triple == pooled[label, line["theme"], line["variant"]]
                    seen += 1
    assert seen == len(pooled)


def test_lines_follow_the_settings_and_the_pooled_one_comes_last(found: dict[str, Table]) -> None:
    table = found["by_theme_images"]
    assert columns(table)[:4] == ["theme", "variant", "place", "Concept ablation"]
    first = [(line["theme"], line["variant"], line["place"]) for line in table.rows[:5]]
    places = ["i2p", "forum", "template", "overall"]
    assert first == [*(("uncased", "20 images", p) for p in places), ("uncased", "200 images", "i2p")]
    assert found["by_theme_keywords"].rows[-1]["theme"] == "all"


def test_all_themes_has_one_column_per_method_and_the_summary_one_line(found: dict[str, Table]) -> None:
    labels = set(columns(found["all_themes"])[1:])
    # the synthetic run has a failed and a skipped variant of all themes
    assert {"Negative prompt", "UCE (compvis2023)"} <= labels
    assert not {"Concept ablation", "Image filter", "Stable Diffusion"} & labels
    assert [line["place"] for line in found["all_themes"].rows] == ["i2p", "forum", "template", "overall"]
    summary = {line["label"]: line for line in found["summary"].rows}
    assert set(summary) == labels
    assert all(0 <= line["answered"] <= 1 for line in summary.values())
    assert summary["UCE (compvis2023)"]["overall"] == next(
        line["UCE (compvis2023)"] for line in found["all_themes"].rows if line["place"] == "overall"
    )


def test_what_cannot_be_aimed_has_a_table_of_its_own(
    inputs: ReportInputs, rows: list[select.Row], found: dict[str, Table]
) -> None:
    assert "fixed" not in found
    changed = [
        {**row, "keyword_set": "fixed"} if row["method"] == "worse" and row["theme"] == "all" else row
        for row in rows
    ]
    table = {t.id: t for t in layouts.layouts(changed, inputs.params)}["fixed"]
    assert {line["label"] for line in table.rows} == {"Worse than nothing"}
    assert [line["judged_theme"] for line in table.rows] == ["uncased", "breakage", "glitch", "any"]
    assert as_csv(table).splitlines()[0].startswith("label,judged_theme,i2p,i2p_low,i2p_high")
