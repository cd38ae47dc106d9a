"""What every method does in the micro world, as one table: EP per theme with intervals, what happens to benign images, what the fit costs.

    make report
    python benchmarks/methods.py                     prints docs/methods/results.md
    python benchmarks/methods.py --write             and writes it

Numbers are those of a report (--report, default reports/micro) whose experiment has one variant per method and theme."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl

PAGE = Path("docs/methods/results.md")
HEAD = """# What the methods do in the micro world

Written by `benchmarks/methods.py --write` from the report of the default experiment (`make report`): hyper-parameters of
`params.yaml`, every preset that runs by default. EP is in percent of the base's unsafe images, with 95 % intervals over prompts; a
method is asked about the theme it was fitted on, and in the last column about all themes at once. Flagged: benign images that the
judge calls unsafe (base: {base}). RMSE: mean change of benign images against the base's of the same seed. Fit: seconds of one core for
one theme, the longest of three.

The micro world says whether a method works as implemented and how its costs compare. Its order of methods is not that of Stable Diffusion:
a small model, short schedules and benign stand-ins for themes.
"""
NAMES = ("method", "preset", "label")


def percent(row: dict[str, Any] | None) -> str:
    """EP with its interval, or why there is none."""
    if row is None:
        return "–"
    if row["status"] != "ok" or row["ep"] is None:
        return str(row["status"])
    low, high = (f"{100 * row[name]:.0f}" if row[name] is not None else "?" for name in ("ep_low", "ep_high"))
    return f"{100 * row['ep']:.0f} [{low}, {high}]"


def lines(
    cells: pl.DataFrame, themes: list[str], rule: str, detector: str, costs: dict[str, float]
) -> list[str]:
    """One line per method and preset, in the order of the table."""
    whole = cells.filter(
        pl.col("dataset") == "overall", pl.col("rule") == rule, pl.col("detector") == detector
    )
    unsafe = whole.filter(pl.col("suite") == "nsfw").to_dicts()
    benign = whole.filter(pl.col("suite") == "coco", pl.col("judged_theme") == "any").to_dicts()
    places = {(r["method"], r["preset"], r["theme"], r["judged_theme"]): r for r in unsafe}
    found = []
    for method, preset in dict.fromkeys((r["method"], r["preset"]) for r in unsafe):
        if method == "sd":
            continue
        own = [places.get((method, preset, t, t), places.get((method, preset, "all", t))) for t in themes]
        quality = [r for r in benign if (r["method"], r["preset"]) == (method, preset) and r["n_answered"]]
        flagged = max((r["n_unsafe"] / r["n_answered"] for r in quality), default=float("nan"))
        drift = max((r["drift"] for r in quality if r["drift"] is not None), default=float("nan"))
        cost = costs.get(f"{method}/{preset}")
        parts = [f"[{method}/{preset}]({method}.md)", *map(percent, own)]
        parts += [
            percent(places.get((method, preset, "all", "any"))),
            f"{100 * flagged:.0f} %",
            f"{drift:.3f}",
        ]
        found.append("| " + " | ".join([*parts, "–" if cost is None else f"{cost:.1f} s"]) + " |")
    return found


def fits(path: Path) -> dict[str, float]:
    """Longest fit of one theme per method and preset, in seconds."""
    longest: dict[str, float] = {}
    for row in json.loads(path.read_text(encoding="utf-8")).get("fits", []):
        if row.get("theme") != "all" and row.get("seconds") is not None:
            name = f"{row['method']}/{row['preset']}"
            longest[name] = max(longest.get(name, 0.0), row["seconds"])
    return longest


def page(report: Path) -> str:
    """The whole page as Markdown."""
    from palimpsest.params import load

    settings = load("params.yaml")
    cells = pl.read_parquet(report / "cells.parquet")
    rule, themes = next(iter(settings.rules)), list(settings.themes)
    base = cells.filter(
        pl.col("method") == "sd", pl.col("suite") == "coco", pl.col("judged_theme") == "any", pl.col("rule") == rule,
        pl.col("dataset") == "overall", pl.col("detector") == settings.judge,
    ).row(0, named=True)  # fmt: skip
    shown = f"{100 * base['n_unsafe'] / base['n']:.0f} % of {base['n']}"
    head = ["method", *themes, "all themes", "flagged, at most", "RMSE, at most", "fit"]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    rows = lines(cells, themes, rule, settings.judge, fits(report / "costs.json"))
    return "\n".join([HEAD.format(base=shown), *table, *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, default=Path("reports/micro"))
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    given = parser.parse_args()
    text = page(given.report)
    print(text)
    if given.write:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
