"""`palimpsest conclude` and `palimpsest compare`: what a results table says, and two methods side by side."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.reports import select
from palimpsest.reports.conclusions import own, paper, registry
from palimpsest.reports.conclusions.side_effects import benign_rows
from palimpsest.reports.conclusions.study import Study
from palimpsest.reports.evidence import percent
from palimpsest.reports.intervals import Estimate, difference
from palimpsest.reports.select import Row

VARIANT = ("theme", "keyword_set", "training_images")


class NoSuchMethod(LookupError):
    """A name that no method of the results answers to, or several do; the message lists those there are."""


def load(folder: Path) -> Study:
    """The study in a folder: published tables, or the report of an experiment. Raises FileNotFoundError for anything else."""
    return paper.load(folder) if paper.is_reference(folder) else own.load(folder)


def concluded(folder: Path) -> dict[str, Any]:
    """Everything that the rules say of a folder."""
    return registry.conclusions(load(folder))


def sentences(found: dict[str, Any]) -> list[str]:
    """Levels, guidance and takeaways in words."""
    lines = [f"Study: {found['study']}", "", "Levels"]
    for one in found["levels"]:
        by_level = [
            f"{level}: " + ", ".join(s["label"] for s in one["standings"] if s["level"] == level)
            for level in (1, 2, 3)
        ]
        lines.append(f"  {one['title']}: " + ("; ".join(by_level) if one["standings"] else one["missing"]))
    lines += ["", "Guidance", *(f"  {one['sentence']}" for one in found["guidance"])]
    for section, rules in found["takeaways"].items():
        said = [f"  [{item['level']}] {item['sentence']}" for rule in rules for item in rule["says"]]
        lines += ["", section.capitalize(), *(said or ["  nothing can be said from these results"])]
    return lines


@dataclass(frozen=True)
class Side:
    """One method on one theme: EP with limits, and counts."""

    ep: float
    low: float | None
    high: float | None
    n_base_unsafe: int
    n_unsafe: int


@dataclass(frozen=True)
class Line:
    """Two methods on one suite, judged for one theme. difference: EP of a less EP of b with its interval; paired: whether it comes from
    the same prompts and seeds; p_holm: None where it does not; told_apart: what the two together say."""

    suite: str
    theme: str
    variant: str
    a: Side
    b: Side
    difference: float
    low: float
    high: float
    paired: bool
    p_holm: float | None
    told_apart: bool


@dataclass(frozen=True)
class Measured:
    """A measure on benign prompts, or a cost: mean over variants, with the mean of the limits where every variant has them."""

    name: str
    a: float | None
    a_low: float | None
    a_high: float | None
    b: float | None
    b_low: float | None
    b_high: float | None


def named(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of a method: its label as reports print it, `method` or `method/preset`, with `/theme.variant` at will.

    Raises NoSuchMethod, also when a name fits several presets.
    """
    wanted = name.strip().lower()
    usable = [row for row in rows if not row["is_base"] and select.is_ok(row)]
    found = [row for row in usable if row["label"].lower() == wanted]
    if not found:
        found = [row for row in usable if any(fnmatch.fnmatchcase(own, wanted) for own in _names(row))]
    labels = sorted({row["label"] for row in found})
    if len(labels) != 1:
        known = sorted({f"{row['label']} = {row['method']}/{row['preset']}" for row in usable})
        what = f"{name!r} fits several: {labels}" if labels else f"no method is called {name!r}"
        raise NoSuchMethod(f"{what}. These results hold:\n  " + "\n  ".join(known))
    return found


def _names(row: Row) -> Iterable[str]:
    cell = f"{row['theme']}.{row['training_images'] or row['keyword_set']}"
    for name in (row["method"], f"{row['method']}/{row['preset']}"):
        yield from (name.lower(), f"{name}/{cell}".lower())


def compared(study: Study, a: str, b: str) -> dict[str, Any]:
    """Two methods side by side: EP per suite and theme on variants that both have, benign prompts, and cost."""
    sides = [named(study.rows, name) for name in (a, b)]
    lines = _lines(study, *sides)
    return {
        "study": study.name,
        "a": sides[0][0]["label"],
        "b": sides[1][0]["label"],
        "definitions": {
            name: study.definition(name)
            for name in ("ep", "ep_difference", "p_sign_flip", "p_holm", *(m.key for m in study.measures))
        },
        "erasure": [asdict(line) for line in lines],
        "benign": [asdict(one) for one in _benign(study, *sides)],
        "cost": [asdict(one) for one in _costs(*sides)],
    }


def _lines(study: Study, a_rows: list[Row], b_rows: list[Row]) -> list[Line]:
    """One line per suite, judged theme and variant of a; b's variant is the same, else its representative of the theme."""
    pooled = [
        [r for r in select.ep_rows(rows, study.setting) if select.has_interval(r)]
        for rows in (a_rows, b_rows)
    ]
    exact = {_place(r, VARIANT): r for r in pooled[1]}
    loose = {_place(r, ("theme",)): r for r in select.representatives(pooled[1], study.setting)}
    fixed = {_place(r, ()): r for r in pooled[1] if r["keyword_set"] == select.FIXED}
    found = []
    for one in pooled[0]:
        anywhere = loose if one["keyword_set"] != select.FIXED else {}
        two = (
            exact.get(_place(one, VARIANT))
            or anywhere.get(_place(one, ("theme",)))
            or fixed.get(_place(one, ()))
        )
        if two is not None:
            found.append(_line(study, one, two))
    return found


def _place(row: Row, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] or None for name in ("suite", "judged_theme", *names))


def _line(study: Study, one: Row, two: Row) -> Line:
    pair = study.compared(one, two)
    gap = pair.gap if pair else study.gap(one, two)
    variants = dict.fromkeys(
        f"{r['theme']}, {r['variant']}" if r["variant"] else r["theme"] for r in (one, two)
    )
    a, b = (Side(r["ep"], r["ep_low"], r["ep_high"], r["n_base_unsafe"], r["n_unsafe"]) for r in (one, two))
    p = pair.p_holm if pair else None
    where = (one["suite"], one["judged_theme"], " against ".join(variants))
    return Line(*where, a, b, gap.value, gap.low, gap.high, pair is not None, p, study.differ(one, two))


def _benign(study: Study, *sides: list[Row]) -> list[Measured]:
    """Drift, quality and shares of answers on benign suites, over the variants of each."""
    both = [benign_rows(rows, study.setting) for rows in sides]
    keys = dict.fromkeys(("drift", *(measure.key for measure in study.measures), "answered"))
    return [one for key in keys if (one := _measured(key, *both)).a is not None and one.b is not None]


def _measured(key: str, *sides: list[Row]) -> Measured:
    numbers: list[float | None] = []
    for rows in sides:
        seen = {_place(row, VARIANT): row for row in rows if row.get(key) is not None}
        values = list(seen.values())
        limits = bool(values) and all(select.has_interval(row, key) for row in values)
        for name in (key, f"{key}_low", f"{key}_high"):
            known = bool(values) and (limits or name == key)
            numbers.append(sum(row[name] for row in values) / len(values) if known else None)
    return Measured(key, *numbers)


def _costs(*sides: list[Row]) -> list[Measured]:
    found = []
    for key in ("fit_seconds", "fit_peak_mb", "seconds_per_image"):
        one = _measured(key, *sides)
        if one.a is not None or one.b is not None:
            found.append(one)
    return found


def in_words(found: dict[str, Any]) -> list[str]:
    """A comparison as lines of text."""
    a, b = found["a"], found["b"]
    lines = [f"{a} against {b} ({found['study']})", ""]
    if not found["erasure"]:
        lines.append("They have no suite and theme in common with an interval.")
    for line in found["erasure"]:
        gap = (
            f"{100 * line['difference']:+.1f} points ({100 * line['low']:+.1f} to {100 * line['high']:+.1f})"
        )
        p = (
            f", p = {line['p_holm']:.2g} after Holm's correction"
            if line["p_holm"] is not None
            else ", not paired"
        )
        end = "" if line["told_apart"] else ": not told apart"
        lines += [
            f"{line['theme']} on {line['suite']} [{line['variant']}]",
            f"  EP {percent(line['a']['ep'])} against {percent(line['b']['ep'])}: {gap}{p}{end}",
        ]
    for title, key in (("Benign prompts", "benign"), ("Cost", "cost")):
        if found[key]:
            lines += ["", title, *(f"  {_told(Measured(**one))}" for one in found[key])]
    return lines


def _told(one: Measured) -> str:
    def number(value: float | None, low: float | None, high: float | None) -> str:
        if value is None:
            return "none"
        return f"{value:.4g}" + (
            f" ({low:.4g} to {high:.4g})" if low is not None and high is not None else ""
        )

    text = (
        f"{one.name}: {number(one.a, one.a_low, one.a_high)} against {number(one.b, one.b_low, one.b_high)}"
    )
    limits = (one.a, one.a_low, one.a_high, one.b, one.b_low, one.b_high)
    if any(value is None for value in limits):
        return text
    known = [float(value) for value in limits if value is not None]
    gap = difference(Estimate(*known[:3]), Estimate(*known[3:]))
    return text + (": not told apart" if gap.covers_zero else "")
