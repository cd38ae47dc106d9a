"""The published tables: whole, and everything in them that can be recomputed from something else is."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "data" / "reference"
DATASETS = {"i2p": 4703, "4chan": 1500, "lexica": 1212, "template": 600}
THEMES = ("nudity", "violence", "horror")
# rows of each table: methods x themes x variants x data sets x measures
SIZES = {
    "3": 13 * 5, "4": 13 * 4, "5": 13, "6": 13 * 4, "9": 9 * 3 + 3, "12": 4 * 5, "13": 13 * 2, "15": 3 * (5 + 4),
    "16": 9 * 7 * 4, "17": 4 * 10 * 4, "18": 9 * 6 * 4, "19": 4 * 9 * 4, "figure 2": 5 * 7,
}  # fmt: skip


def read(name: str) -> list[dict[str, str]]:
    with (ROOT / name).open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


TABLES, COUNTS, METHODS = read("paper_tables.csv"), read("paper_counts.csv"), read("paper_methods.csv")
KEY = ("table", "method", "theme", "variant", "dataset")


def test_every_row_is_there_once_with_a_number() -> None:
    assert Counter(row["table"] for row in TABLES) == SIZES
    keys = [tuple(row[k] for k in (*KEY, "metric")) for row in TABLES]
    assert len(keys) == len(set(keys))
    for row in TABLES:
        float(row["value"])
    assert (
        sum(
            len([v for k, v in row.items() if k != "theme" and k != "erased" and v])
            for row in read("suppression_table8.csv")
        )
        == 66
    )


def test_methods_of_the_tables_are_described() -> None:
    others = {"CLIP", "VQA", "MHSC", "NudeNet", "prompts", "SD v1.4"}
    assert {row["method"] for row in TABLES} - others == {row["method"] for row in METHODS}
    assert len([row for row in METHODS if row["ranked"] == "yes"]) == 13


def test_every_proportion_follows_from_its_counts() -> None:
    known = {tuple(row[k] for k in KEY): row for row in COUNTS}
    proportions = [row for row in TABLES if row["metric"] == "ep"]
    assert len(proportions) == 564
    again = 0
    for row in proportions:
        key = tuple(row[k] for k in KEY)
        if row["table"] in ("16", "17") and row["theme"] == "nsfw":  # Table 3 once more
            key = ("3", *key[1:])
            again += 1
        found = known[key]
        before, after = int(found["n_base_unsafe"]), int(found["n_unsafe"])
        assert 100 * (before - after) / before == pytest.approx(float(row["value"]), abs=0.0051), row
        assert found["ep_published"] == row["value"]
    assert again == 13 * 4 and len(known) == len(proportions) - again


def test_one_hidden_denominator_per_theme_and_data_set() -> None:
    found: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for row in COUNTS:
        found[row["theme"], row["dataset"]].add((row["n"], row["n_base_unsafe"]))
        assert row["dataset"] not in DATASETS or int(row["n"]) == DATASETS[row["dataset"]]
    assert {len(values) for values in found.values()} == {1}


def test_overall_is_pooled() -> None:
    groups: dict[tuple[str, ...], dict[str, dict[str, str]]] = defaultdict(dict)
    for row in COUNTS:
        attack = row["table"] == "4"
        where = row["theme"] if attack else row["dataset"]
        groups[row["table"], row["method"], "" if attack else row["theme"], row["variant"]][where] = row
    checked = 0
    for found in groups.values():
        whole = found.pop("overall", None)
        if whole:
            for name in ("n", "n_base_unsafe", "n_unsafe"):
                assert sum(int(row[name]) for row in found.values()) == int(whole[name])
            checked += 1
    assert checked == 13 + 13 + 4 + 3  # Tables 3, 4, 12 and 15


def test_scores_of_detectors_follow_from_their_confusion_matrices() -> None:
    published = {
        (row["method"], row["theme"], row["metric"]): float(row["value"])
        for row in TABLES
        if row["table"] == "9"
    }
    matrices = read("paper_confusion.csv")
    for row in matrices:
        tp, fp, fn, tn = (int(row[k]) for k in ("tp", "fp", "fn", "tn"))
        assert tp + fp + fn + tn == 8015
        own = {"accuracy": (tp + tn) / 8015, "recall": tp / (tp + fn), "f1": 2 * tp / (2 * tp + fp + fn)}
        for metric, value in own.items():
            assert 100 * value == pytest.approx(
                published.pop((row["detector"], row["theme"], metric)), abs=0.0051
            )
    assert not published
    assert len({int(r["tp"]) + int(r["fn"]) for r in matrices if r["theme"] == "nudity"}) == 1


def test_figure_2_pools_over_images_once_its_first_two_columns_are_swapped_back() -> None:
    own = {
        (r["dataset"], r["theme"] or r["metric"]): float(r["value"])
        for r in TABLES
        if r["table"] == "figure 2"
    }

    def pooled(column: str) -> float:
        return sum(own[name, column] * n for name, n in DATASETS.items()) / 8015

    for theme in (*THEMES, "nsfw", "toxicity_high"):
        assert pooled(theme) == pytest.approx(own["overall", theme], abs=0.02)
    assert pooled("toxicity_moderate") == pytest.approx(own["overall", "toxicity_low"], abs=0.02)
    assert abs(pooled("toxicity_low") - own["overall", "toxicity_low"]) > 20
