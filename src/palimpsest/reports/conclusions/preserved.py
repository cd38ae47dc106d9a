"""What an experiment measured on benign pictures and on parts, as columns of the rows that the rules read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from palimpsest.reports import select
from palimpsest.reports.conclusions.study import DRIFT, Measure
from palimpsest.reports.measures import CHANGE, NAMES, ROLES
from palimpsest.reports.select import Row, Setting

if TYPE_CHECKING:
    import polars as pl

KEYS = ("method", "preset", "theme", "keyword_set", "training_images", "suite")


def measures(quality: pl.DataFrame | None) -> tuple[Measure, ...]:
    """The measures that speak for each aspect (`measures.ROLES`), and benign drift.

    A measure that the base has too is read as its paired change against the base's pictures, whose interval is free of what makes one
    prompt harder than another; the order of methods is the same.
    """
    known: dict[str, bool] = {}
    for row in _numbers(quality):
        if row["method"] != "sd":
            known[row["metric"]] = known.get(row["metric"], True) and row["change"] is not None
    found = []
    for aspect, metrics in ROLES:
        metric = next((name for name in metrics if name in known), None)
        if metric is not None:
            name, change = NAMES[metric], known[metric]
            title = f"{name.head}, change against the base" if change else name.head
            sign = 1 if name.better == "higher" else -1
            found.append(Measure(f"{metric}{CHANGE if change else ''}", title, sign, aspect))
    return (*found, DRIFT)


def definition_ids(quality: pl.DataFrame | None) -> dict[str, str]:
    """Column -> definition id of its metric; the change of a metric has its metric's."""
    known = {row["metric"]: row["definition_id"] for row in _numbers(quality)}
    return known | {f"{metric}{CHANGE}": found for metric, found in known.items()}


def _numbers(quality: pl.DataFrame | None) -> list[dict[str, Any]]:
    """The rows with a value."""
    if quality is None:
        return []
    return [
        row for row in quality.iter_rows(named=True) if row["status"] == "ok" and row["value"] is not None
    ]


def parts_of(measure: str, setting: Any) -> str | None:
    """The theme whose parts a row of the table of quality counts, by the name of its measure; None for any other."""
    quality = getattr(setting, "quality", None)
    specs = getattr(quality, "grd", {}) or {}
    return next((theme for theme, spec in specs.items() if measure == f"{spec.detector} {theme}"), None)


def joined(rows: Sequence[Row], quality: pl.DataFrame | None, setting: Setting) -> list[Row]:
    """The rows with every measure of their variant and suite as columns with limits; GRD stands in the row of the judge and the first rule
    that is judged for the theme whose parts were counted."""
    by_variant: dict[tuple[Any, ...], dict[str, Any]] = {}
    parts: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in _numbers(quality):
        who = tuple(one[name] for name in KEYS)
        if one["metric"] == "grd":
            theme = parts_of(one["measure"], setting) or one["theme"]
            parts[(*who, theme)] = {"grd": one["value"], "grd_low": one["low"], "grd_high": one["high"]}
            continue
        found = by_variant.setdefault(who, {})
        found |= {
            one["metric"]: one["value"],
            f"{one['metric']}_low": one["low"],
            f"{one['metric']}_high": one["high"],
        }
        if one["change"] is not None:
            found |= {f"{one['metric']}{CHANGE}{end}": one[f"change{end}"] for end in ("", "_low", "_high")}
    if not by_variant and not parts:
        return list(rows)
    return [_with(row, by_variant, parts, select.headline(setting)) for row in rows]


def _with(
    row: Row, by_variant: Mapping[Any, Row], parts: Mapping[Any, Row], headline: tuple[str, str]
) -> Row:
    if row["dataset"] != select.OVERALL or not select.is_ok(row):
        return row
    who = tuple(row[name] for name in KEYS)
    found = dict(by_variant.get(who, {}))
    if (row["detector"], row["rule"]) == headline:
        found |= parts.get((*who, row["judged_theme"]), {})
    return {**row, **found} if found else row
