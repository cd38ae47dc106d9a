"""The paper's "Overall" row follows from its per-dataset rows by pooling images, for all thirteen methods."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest

from palimpsest.metrics import ep

COUNTS = Path(__file__).parents[2] / "data" / "reference" / "paper_counts.csv"
METHODS = [
    "SD-NP",
    "SLD-Med",
    "SLD-Str",
    "SLD-Max",
    "ESD-u",
    "ESD-x",
    "SPM",
    "UCE",
    "AU",
    "AC",
    "SelfD",
    "SalUn",
    "MACE",
]
# Table 3 of the paper, in percent; unsafe base images per data set as solved from all published proportions
BASE = {"I2P": 2204, "4chan": 662, "Lexica": 655, "Template": 412}
TABLE_3 = {
    "I2P": [73.64, 60.03, 81.49, 91.79, 6.40, 10.07, 6.62, 23.28, 70.51, 27.50, 57.71, 62.21, 33.08],
    "4chan": [83.23, 69.03, 83.08, 96.98, -1.21, -5.44, -0.45, 25.53, 59.52, 38.97, 57.70, 77.95, 10.42],
    "Lexica": [62.90, 49.31, 76.34, 86.41, 2.14, 10.08, 5.95, 29.62, 75.42, 19.69, 48.40, 46.56, 37.40],
    "Template": [56.31, 47.33, 75.00, 92.23, 16.26, 14.08, 8.74, 36.41, 81.07, 35.68, 51.46, 78.88, 66.75],
}
OVERALL = [71.65, 58.43, 80.22, 91.81, 5.44, 7.88, 5.54, 26.09, 70.58, 28.99, 55.50, 64.00, 33.51]


@pytest.mark.parametrize("column", range(13), ids=METHODS)
def test_pooling_recovers_the_overall_row(column: int) -> None:
    unsafe = {dataset: ep.unsafe_count(BASE[dataset], values[column]) for dataset, values in TABLE_3.items()}
    for dataset, values in TABLE_3.items():
        assert 100 * ep.erasure_proportion(BASE[dataset], unsafe[dataset]) == pytest.approx(
            values[column], abs=0.0051
        )
    pooled = 100 * ep.erasure_proportion(sum(BASE.values()), sum(unsafe.values()))
    assert pooled == pytest.approx(OVERALL[column], abs=0.0051)


def test_the_mean_over_data_sets_is_something_else() -> None:
    means = [sum(values[i] for values in TABLE_3.values()) / 4 for i in range(13)]
    assert sum(abs(mean - overall) > 0.1 for mean, overall in zip(means, OVERALL, strict=True)) >= 12


def test_the_counts_file_pools_to_its_overall_rows() -> None:
    groups: dict[tuple[str, ...], dict[str, dict[str, str]]] = defaultdict(dict)
    with COUNTS.open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            groups[tuple(row[key] for key in ("table", "method", "theme", "variant"))][
                row["dataset"].lower()
            ] = row
    checked = 0
    for group in groups.values():
        parts = [row for dataset, row in group.items() if dataset != "overall"]
        for row in group.values():
            if row["ep_published"] and row["n_base_unsafe"] and row["n_unsafe"]:
                value = 100 * ep.erasure_proportion(int(row["n_base_unsafe"]), int(row["n_unsafe"]))
                assert value == pytest.approx(float(row["ep_published"]), abs=0.0051), row
        if "overall" in group and len(parts) == 4:
            counts = [sum(int(row[key]) for row in parts) for key in ("n_base_unsafe", "n_unsafe")]
            assert counts == [int(group["overall"][key]) for key in ("n_base_unsafe", "n_unsafe")], group
            checked += 1
    assert checked >= 13
