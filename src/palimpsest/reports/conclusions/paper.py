"""The published tables as a study: `data/reference` read into the rows that an experiment has.

Counts behind the published proportions give every EP an interval (`metrics.unpaired`). FID, LPIPS, CLIPScore, ImageReward, GRD and times
were published as single numbers, so rows hold them without limits.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest import store
from palimpsest.metrics.ep import erasure_proportion
from palimpsest.metrics.unpaired import ep_interval
from palimpsest.reference import FILES
from palimpsest.reports.conclusions.study import QUALITY, Study
from palimpsest.reports.inputs import CELL_COLUMNS
from palimpsest.reports.select import (
    ANY,
    EVERY_THEME,
    OVERALL,
    STRENGTHS,
    Row,
    anchor,
    answered,
    variant_name,
)

# Of these the published tables do not say what they were given.
UNSAID = ("ace", "erasediff", "metaun", "cleaned")
EVERY = "nsfw"  # what the published tables call all themes at once
STAGES = {
    "post-hoc correction": "inference guidance",
    "parameter fine-tuning": "fine-tuning",
    "dataset cleaning": "data filtering",
}


@dataclass(frozen=True)
class Suite:
    """What the rules ask of a prompt suite. sources: prompts with seeds per data set."""

    kind: str
    theme: str | None
    sources: Mapping[str, int]


@dataclass(frozen=True)
class Variants:
    """The keyword sets, the headline one first."""

    keyword_sets: tuple[str, ...]


@dataclass(frozen=True)
class Statistics:
    """As in the settings of an experiment."""

    confidence: float
    least_base_unsafe: int


@dataclass(frozen=True)
class Published:
    """`select.Setting` of the published study."""

    themes: Mapping[str, Any]
    suites: Mapping[str, Suite]
    judge: str
    rules: Mapping[str, Any]
    variants: Variants
    statistics: Statistics


def is_reference(folder: Path) -> bool:
    """Whether a folder holds the published tables."""
    return all((folder / name).is_file() for name in FILES)


def setting_of(study: Mapping[str, Any]) -> Published:
    """`study.json` as a setting."""
    suites = {name: Suite(s["kind"], s["theme"], s["sources"]) for name, s in study["suites"].items()}
    return Published(
        study["themes"],
        suites,
        study["judge"],
        {study["rule"]: None},
        Variants(tuple(study["keyword_sets"])),
        Statistics(study["confidence"], study["least_base_unsafe"]),
    )


def load(folder: Path, appendix: bool = False) -> Study:
    """The published study. appendix: with the methods that its main comparison leaves out (dataset cleaning, its Appendix L).

    Raises FileNotFoundError naming the file that is missing.
    """
    folder = Path(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; the published tables are {list(FILES)}")
    settings = store.read_json(folder / "study.json")
    setting = setting_of(settings)
    every = {row["method"]: row for row in _read(folder / "paper_methods.csv")}
    methods = {name: row for name, row in every.items() if appendix or row["ranked"] == "yes"}
    tables = [row for row in _read(folder / "paper_tables.csv") if row["method"] in every]
    rows = list(_ep_rows(folder, methods, setting)) + list(_other_rows(tables, methods))
    times = _times(tables)
    for row in rows:
        row |= {
            "detector": setting.judge,
            "rule": settings["rule"],
            "status": "ok",
            "experiment": settings["experiment"],
        }
        row |= times.get(row["label"], {})
        row |= {"variant": variant_name(row), "anchor": anchor(row), "is_base": False} | answered(row)
    whole = list(_read(folder / "paper_tables.csv"))
    return Study(
        settings["experiment"],
        setting,
        rows,
        published=True,
        toxicity=_toxicity(whole),
        judges=_judges(folder),
    )


def _read(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        yield from csv.DictReader(handle)


def _row(method: Mapping[str, str], theme: str, variant: str) -> Row:
    """The identity of a row: what a method erased, and from what."""
    images = int(variant.removesuffix(" images")) if variant.endswith("images") else 0
    strength = method["preset"] if method["preset"] in STRENGTHS else None
    erased = EVERY_THEME if theme == EVERY else theme
    return dict.fromkeys((*CELL_COLUMNS, "drift_low", "drift_high", *QUALITY, "grd")) | {
        "label": method["method"],
        "method": method["name"],
        "preset": method["preset"],
        "theme": erased or None,
        "judged_theme": ANY if erased == EVERY_THEME else erased,
        "keyword_set": "detailed" if images else variant or None,
        "training_images": images,
        "stage": STAGES[method["stage"]],
        "family": method["family"],
        "fits": method["fits"] == "yes",
        "needs_images": method["needs"] == "images",
        "adversarial": method["adversarial"] == "yes",
        "strength": None if strength is None else STRENGTHS.index(strength),
    }


def _ep_rows(folder: Path, methods: Mapping[str, Any], setting: Published) -> Iterator[Row]:
    """One row per published proportion, and the pooled one where only its parts were published."""
    groups: dict[tuple[str, ...], dict[str, tuple[int, int, int]]] = defaultdict(dict)
    for row in _read(folder / "paper_counts.csv"):
        if row["method"] in methods and row["theme"] != OVERALL:
            counts = (int(row["n"]), int(row["n_base_unsafe"]), int(row["n_unsafe"]))
            groups[row["method"], row["theme"], row["variant"], row["table"]][row["dataset"]] = counts
    for (method, theme, variant, _), parts in groups.items():
        attack = "ring_a_bell" in parts
        suite = f"ring_a_bell_{theme}" if attack else "nsfw"
        if OVERALL not in parts:
            parts[OVERALL] = tuple(map(sum, zip(*parts.values(), strict=True)))  # type: ignore[assignment]
        for dataset, (n, before, after) in parts.items():
            low, high = ep_interval(n, before, after, setting.statistics.confidence)
            if math.isnan(low):  # nothing was left: the rule of three on what was there before
                low, high = 1 - 3 / before, 1.0
            identity = _row(methods[method], theme, variant)
            yield identity | {
                "suite": suite,
                "dataset": dataset,
                "n": n,
                "n_answered": n,
                "n_base_unsafe": before,
                "n_unsafe": after,
                "ep": erasure_proportion(before, after),
                "ep_low": low,
                "ep_high": high,
            }


def _other_rows(tables: list[dict[str, str]], methods: Mapping[str, Any]) -> Iterator[Row]:
    """Quality on benign captions, and GRD: a row per method, theme and variant."""
    groups: dict[tuple[str, ...], Row] = {}
    for row in tables:
        if row["metric"] in (*QUALITY, "grd") and row["method"] in methods:
            grd = row["metric"] == "grd"
            key = (row["method"], row["theme"], row["variant"], str(grd))
            found = groups.setdefault(key, _row(methods[row["method"]], row["theme"], row["variant"]))
            found |= {"suite": "nsfw" if grd else "coco", "dataset": OVERALL, "n": None if grd else 10_000}
            found[row["metric"]] = float(row["value"]) / (100 if grd else 1)
    yield from groups.values()


def _times(tables: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """Seconds of fitting and per image, by method."""
    names = {"training_time": "fit_seconds", "inference_time": "seconds_per_image"}
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in tables:
        if row["metric"] in names:
            found[row["method"]][names[row["metric"]]] = float(row["value"])
    return found


def _toxicity(tables: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One dict per data set: the shares of prompts that are little, rather and very toxic, and of images labelled with any theme."""
    found: dict[str, dict[str, Any]] = {}
    for row in tables:
        if row["table"] == "figure 2":
            line = found.setdefault(row["dataset"], {"dataset": row["dataset"]})
            key = row["metric"] if row["metric"] != "labelled" else row["theme"]
            line[key] = float(row["value"]) / 100
    return list(found.values())


def _judges(folder: Path) -> list[dict[str, Any]]:
    """Accuracy, recall and F1 of every detector and theme, from its confusion matrix."""
    found = []
    for row in _read(folder / "paper_confusion.csv"):
        tp, fp, fn, tn = (int(row[name]) for name in ("tp", "fp", "fn", "tn"))
        n = tp + fp + fn + tn
        found.append(
            {
                "detector": row["detector"],
                "theme": row["theme"],
                "n": n,
                "accuracy": (tp + tn) / n,
                "recall": tp / (tp + fn),
                "f1": 2 * tp / (2 * tp + fp + fn),
            }
        )
    return found
