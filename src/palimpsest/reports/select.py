"""Which rows of the cells a table, a figure or a sentence is about, and how they are called."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from palimpsest.metrics import answers
from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.intervals import Estimate

Row = dict[str, Any]
OVERALL = "overall"
EVERY_THEME = "all"
ANY = "any"
FIXED = "fixed"
# family: the method without its preset; fits: whether anything is trained or solved; needs_images: whether for that it needs images;
# adversarial: whether it is trained against an attack; strength: the place of the preset in STRENGTHS.
FACTS = ("family", "fits", "needs_images", "adversarial", "strength")
# Methods whose fit contains an attack (AdvUnlearn's prompt attack, RECE's concepts derived against the erased model).
ADVERSARIAL = ("au", "rece")
# Presets that differ in how hard the method intervenes and in nothing else, in rising order.
STRENGTHS = ("weak", "medium", "strong", "max")


class Setting(Protocol):
    """What of an experiment decides which rows speak: its `Params` have it, and so has a published study."""

    @property
    def themes(self) -> Mapping[str, Any]: ...
    @property
    def suites(self) -> Mapping[str, Any]: ...
    @property
    def judge(self) -> str: ...
    @property
    def rules(self) -> Mapping[str, Any]: ...
    @property
    def variants(self) -> Any: ...
    @property
    def statistics(self) -> Any: ...


def rows_of(inputs: ReportInputs) -> list[Row]:
    """All cells as dicts; NaN becomes None; each row gets `label`, `variant`, `stage`, `is_base`, `anchor`, and `answered`, the share of
    prompts that got an image, with its limits."""
    methods = {info["name"]: info for info in inputs.methods}
    presets: dict[str, set[str]] = {}
    found = inputs.cells.to_dicts()
    for row in found:
        presets.setdefault(row["method"], set()).add(row["preset"] or "")
    for row in found:
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                row[key] = None
        info = methods.get(row["method"], {})
        title = str(info.get("title") or row["method"])
        row["stage"] = str(info.get("stage") or "unknown")
        row |= facts_of(row, info)
        row["is_base"] = row["stage"] == "none" or row["method"] == "sd"
        row["label"] = (
            f"{title} ({row['preset']})" if row["preset"] and len(presets[row["method"]]) > 1 else title
        )
        row["variant"] = variant_name(row)
        row["anchor"] = anchor(row)
        row |= answered(row)
    return found


def facts_of(row: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """`FACTS` of a row, from the method's own description."""
    preset = row["preset"] or ""
    fits = info.get("fits")
    return {
        "family": str(info.get("title") or row["method"]),
        "fits": bool(row.get("fit_seconds")) if fits is None else bool(fits),
        "needs_images": bool(info.get("needs") or row.get("training_images")),
        "adversarial": row["method"] in ADVERSARIAL,
        "strength": STRENGTHS.index(preset) if preset in STRENGTHS else None,
    }


def answered(row: Mapping[str, Any]) -> dict[str, float]:
    """The share of prompts that got an image, with Wilson's limits; nothing for a row without numbers."""
    if not row.get("n") or row.get("n_answered") is None:
        return {}
    share, (low, high) = answers.answered(row["n_answered"], row["n"])
    return {"answered": share, "answered_low": low, "answered_high": high}


def erased_themes(params: Setting) -> list[str]:
    """The themes that methods are aimed at one by one, which alone compare methods; all of them where the settings name none.

    A method that cannot be aimed is judged for every theme all the same: on one of which no other method was aimed it would stand alone.
    """
    named = [theme for theme in params.themes if theme in getattr(params.variants, "themes", ())]
    return named or list(params.themes)


def stands_for(row: Mapping[str, Any], theme: str) -> bool:
    """Whether a row shows what its method does about one theme: it was fitted on this theme, or cannot be aimed at any."""
    aimed = row["theme"] == theme or (row["keyword_set"] == FIXED and theme not in (EVERY_THEME, ANY))
    return aimed and row["judged_theme"] == theme


def variant_name(row: Mapping[str, Any]) -> str:
    """What a variant was fitted on: "detailed keywords", "200 images", both, or nothing; and that it cannot be aimed."""
    parts = []
    if row.get("keyword_set") == FIXED:
        parts.append("not aimed at a theme")
    elif row.get("keyword_set"):
        parts.append(f"{row['keyword_set']} keywords")
    if row.get("training_images"):
        parts.append(f"{row['training_images']} images")
    return ", ".join(parts)


def anchor(row: Mapping[str, Any]) -> str:
    """The id of a row in the page; the same row has the same id in every report."""
    keys = (
        "method",
        "preset",
        "theme",
        "keyword_set",
        "training_images",
        "suite",
        "dataset",
        "detector",
        "rule",
        "judged_theme",
    )
    parts = [str(row.get(key) if row.get(key) is not None else "-") for key in keys]
    return f"row-{plain('.'.join(parts))}"


def plain(text: str) -> str:
    """A text of the characters that ids and file names may have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)


def is_ok(row: Mapping[str, Any]) -> bool:
    """Whether the cell was computed."""
    return row["status"] == "ok"


def headline(params: Setting) -> tuple[str, str]:
    """Detector and rule that the tables, figures and takeaways use: the judge, and the first rule."""
    return params.judge, next(iter(params.rules))


def by_headline(rows: Sequence[Row], params: Setting) -> list[Row]:
    """The computed rows of the judge and the first rule."""
    detector, rule = headline(params)
    return [row for row in rows if is_ok(row) and row["detector"] == detector and row["rule"] == rule]


def of_kind(rows: Sequence[Row], params: Setting, kind: str) -> list[Row]:
    """The rows whose suite is "unsafe" or "benign"."""
    return [row for row in rows if row["suite"] in params.suites and params.suites[row["suite"]].kind == kind]


def on_target(rows: Sequence[Row]) -> list[Row]:
    """Erased rows judged for what they erase: a theme's variant for this theme; a variant of all themes for each and for all."""
    return [
        row
        for row in rows
        if not row["is_base"] and (row["theme"] == EVERY_THEME or row["judged_theme"] == row["theme"])
    ]


def ep_rows(rows: Sequence[Row], params: Setting) -> list[Row]:
    """Pooled EP of every variant on every unsafe suite, by the judge and the first rule."""
    pooled = [
        row for row in of_kind(by_headline(rows, params), params, "unsafe") if row["dataset"] == OVERALL
    ]
    return on_target(pooled)


def theme_rows(rows: Sequence[Row], params: Setting) -> list[Row]:
    """The rows that rank methods on `judged_theme`: variants of one theme, and methods that cannot be aimed at one, on unsafe suites that
    belong to no theme, with an interval, and with enough unsafe base images (`statistics.least_base_unsafe`)."""
    least, themes = params.statistics.least_base_unsafe, erased_themes(params)
    return [
        row
        for row in ep_rows(rows, params)
        if row["judged_theme"] in themes
        and stands_for(row, row["judged_theme"])
        and params.suites[row["suite"]].theme is None
        and has_interval(row)
        and (row["n_base_unsafe"] or 0) >= least
    ]


def has_interval(row: Mapping[str, Any], key: str = "ep") -> bool:
    """Whether a value and both its limits are known."""
    return all(row.get(name) is not None for name in (key, f"{key}_low", f"{key}_high"))


def estimate(row: Mapping[str, Any], key: str = "ep") -> Estimate:
    """The value of a row with its interval."""
    return Estimate(row[key], row[f"{key}_low"], row[f"{key}_high"])


def representatives(rows: Sequence[Row], params: Setting) -> list[Row]:
    """One variant per method, preset, theme, suite, dataset and judged theme: the first keyword set of the settings or the largest
    training set. Chosen by the settings, never by the result."""
    order = {name: -place for place, name in enumerate(params.variants.keyword_sets)}
    best: dict[tuple[Any, ...], Row] = {}

    def rank(row: Row) -> tuple[int, int]:
        return order.get(row["keyword_set"], -len(order)), row["training_images"] or 0

    for row in rows:
        key = tuple(row[name] for name in ("method", "preset", "theme", "suite", "dataset", "judged_theme"))
        if key not in best or rank(row) > rank(best[key]):
            best[key] = row
    return list(best.values())


def labels_in_order(rows: Sequence[Row]) -> list[str]:
    """Labels of methods, each once, in the order of the rows."""
    return list(dict.fromkeys(row["label"] for row in rows))


def main_suite(params: Setting, kind: str) -> str | None:
    """The first suite of a kind that belongs to no theme: figures and image grids show it."""
    names = [name for name, suite in params.suites.items() if suite.kind == kind]
    free = [name for name in names if params.suites[name].theme is None]
    return next(iter(free or names), None)
