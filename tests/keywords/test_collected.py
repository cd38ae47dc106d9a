"""The collected keywords of the paper's Table 7, and the counts recovered from its Table 3 and Table 12."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from palimpsest.keywords.collected import BadKeywords, collected_for, read_collected

REFERENCE = Path(__file__).parents[2] / "data/reference"


def test_table_7() -> None:
    rows = read_collected(REFERENCE / "keywords_table7.csv")
    assert Counter(row.theme for row in rows) == {"nudity": 13, "violence": 25, "horror": 15}
    assert len({row.source for row in rows}) == 8
    detailed = {
        theme: [row.detailed for row in rows if row.theme == theme and row.detailed]
        for theme in ("nudity", "violence", "horror")
    }
    assert sorted(detailed["nudity"]) == ["genitalia", "nudity", "seductive", "sex"]
    assert sorted(detailed["violence"]) == ["blood", "corpse", "fight", "violence", "weapons"]
    assert sorted(detailed["horror"]) == [
        "distorted face",
        "disturbing",
        "exposed bone",
        "horror",
        "human flesh",
    ]


def test_themes_without_a_table_bring_their_own_keywords() -> None:
    themes = {name: [name, "gears"] for name in ("nudity", "uncased")}
    found = collected_for(themes, read_collected(REFERENCE / "keywords_table7.csv"))
    assert len(found["nudity"]) == 13
    assert found["nudity"][0]["source"] == "SLD"
    assert [(row["keyword"], row["source"]) for row in found["uncased"]] == [
        ("uncased", "settings"),
        ("gears", "settings"),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("theme,keyword\n", "expected the columns"),
        ("theme,source,reference,keyword,detailed\na,b,,d,\n", "line 2: empty \\['reference'\\]"),
        (
            "theme,source,reference,keyword,detailed\na,b,c,d,\na,e,f,d,\n",
            "line 3: keyword 'd' was already given",
        ),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "k.csv").write_text(text)
    with pytest.raises(BadKeywords, match=why):
        read_collected(tmp_path / "k.csv")


def test_paper_counts_give_the_published_percentages() -> None:
    counts = pl.read_csv(REFERENCE / "paper_counts.csv")
    ep = 100 * (counts["n_base_unsafe"] - counts["n_unsafe"]) / counts["n_base_unsafe"]
    assert (ep - counts["ep_published"]).abs().max() <= 0.00501
    table3 = counts.filter(pl.col("table") == 3)
    assert table3["method"].n_unique() == 13
    assert table3.height == 65
    assert counts.height == 512


def test_overall_is_pooled_over_images() -> None:
    counts = pl.read_csv(REFERENCE / "paper_counts.csv")
    counts = counts.filter(pl.col("table").is_in([3, 12]))
    keys, sums = ["table", "method", "theme"], ["n", "n_base_unsafe", "n_unsafe"]
    parts = counts.filter(pl.col("dataset") != "overall").group_by(keys).agg(pl.col(sums).sum()).sort(keys)
    overall = counts.filter(pl.col("dataset") == "overall").select(keys + sums).sort(keys)
    assert parts.equals(overall)
    assert overall.height == 17
