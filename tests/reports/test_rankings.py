"""Ranks and pairs on the page: which methods stand in them, in which order, and that every number is that of the table it comes from."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from palimpsest.reports import rankings, select
from palimpsest.reports.conclusions import own
from palimpsest.reports.inputs import ReportInputs


def test_ranks_stand_by_theme_best_first_with_their_own_numbers(inputs: ReportInputs) -> None:
    rows = rankings.rank_rows(select.rows_of(inputs), inputs)
    assert inputs.ranks is not None
    assert len(rows) == inputs.ranks.height > 0
    themes = [*inputs.params.themes]
    for a, b in pairwise(rows):
        assert (themes.index(a["judged_theme"]), a["rank"]) <= (themes.index(b["judged_theme"]), b["rank"])
        if a["judged_theme"] == b["judged_theme"]:
            assert a["ep"] >= b["ep"]
    table = rankings.rank_table(select.rows_of(inputs), inputs)
    assert {"rank", "first", "ep"} <= {column.key for column in table.columns}


def test_pairs_are_turned_so_that_the_difference_is_not_negative(inputs: ReportInputs) -> None:
    rows = select.rows_of(inputs)
    study = own.study_of(inputs, rows)
    found = rankings.pair_rows(study, rows, inputs)
    assert found
    for row in found:
        assert row["difference_low"] <= row["difference"] <= row["difference_high"] and row["difference"] >= 0
        assert row["told"] == ("yes" if row["p_holm"] < 0.05 and row["difference_low"] > 0 else "no")
    assert {row["told"] for row in found} == {"yes", "no"}
    known = {frozenset((row["label"], row["other"])) for row in found if row["judged_theme"] == "glitch"}
    ranked = {row["label"] for row in rankings.rank_rows(rows, inputs) if row["judged_theme"] == "glitch"}
    assert len(known) == len(ranked) * (len(ranked) - 1) // 2


def test_the_page_has_both_and_neither_without_them(inputs: ReportInputs, report: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    for piece in ('id="ranks-table"', 'id="pairs-table"', 'id="figure-ranks"'):
        assert piece in text
    header = (report / "tables" / "ranks.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "rank,rank_low,rank_high" in header
    bare = replace(inputs, ranks=None)
    assert rankings.rank_rows(select.rows_of(bare), bare) == []
