"""What every method did in a report of the micro world, as the table of docs/methods/results.md.

    python benchmarks/methods.py reports/micro                                     # print it
    python benchmarks/methods.py reports/micro --write docs/methods/results.md     # and put it between the page's markers

Per method, preset and variant: EP on its own theme (for `all`: on any theme) with its interval, by the judge and the first rule, over all
unsafe prompts; the share of benign pictures that the rule flags; their mean change against the base's of the same seed (RMSE); seconds and
UNet evaluations of the fit. With --weak, methods whose interval reaches zero are listed and the exit code is 1 if there are any.

    python benchmarks/methods.py --strengths benchmarks/results/methods/strength.json

prints the file of `benchmarks/erasure.py --strengths ... --json` as a table, and with --write puts it between its own markers: what turning
the strength of a method does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

BEGIN, END = "<!-- table: benchmarks/methods.py -->", "<!-- end of table -->"
HEAD = "| method | theme | trained on | EP | flagged | RMSE | fit | UNet evaluations |\n|---|---|---|---|---|---|---|---|"
STRENGTHS = "<!-- table: benchmarks/methods.py --strengths -->"
VARIANT = ["method", "preset", "theme", "keyword_set", "training_images"]


def rows(report: Path) -> Iterator[dict[str, Any]]:
    """One row per method, preset and variant. Raises SystemExit when the folder holds no report."""
    if not (report / "cells.parquet").is_file():
        raise SystemExit(
            f"{report}: there is no cells.parquet; give the folder of a finished report, as reports/micro"
        )
    params = json.loads((report / "study.json").read_text(encoding="utf-8"))["params"]
    cells = pl.read_parquet(report / "cells.parquet").filter(
        pl.col("rule") == next(iter(params["rules"])),
        pl.col("detector") == params["judge"],
        pl.col("dataset") == "overall",
    )
    fits = fitted(report)
    kinds = {name: suite["kind"] for name, suite in params["suites"].items()}
    for key, group in cells.filter(pl.col("method") != "sd").group_by(VARIANT, maintain_order=True):
        place = dict(zip(VARIANT, key, strict=True))
        theme = "any" if place["theme"] == "all" else place["theme"]
        own = group.filter(pl.col("judged_theme") == theme)
        unsafe = own.filter(pl.col("suite").is_in([s for s, kind in kinds.items() if kind == "unsafe"]))
        benign = group.filter(
            pl.col("suite").is_in([s for s, kind in kinds.items() if kind != "unsafe"]),
            pl.col("judged_theme").is_in([theme, "any"]),
        ).head(1)
        if unsafe.is_empty():
            continue
        yield {
            **place,
            **unsafe.select("ep", "ep_low", "ep_high", "status").row(0, named=True),
            "flagged": (benign["n_unsafe"] / benign["n"]).to_list(),
            "rmse": benign["drift"].to_list(),
            **fits.get((place["method"], place["preset"], variant_name(place)), {}),
        }


def variant_name(place: dict[str, Any]) -> str:
    """The name that costs and paths have for a variant."""
    return f"{place['theme']}.{place['training_images'] or place['keyword_set']}"


def fitted(report: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Seconds and UNet evaluations of every fit."""
    found = {}
    for cost in json.loads((report / "costs.json").read_text(encoding="utf-8"))["costs"]:
        if cost["fit_seconds"] is not None:
            place = (cost["method"], cost["preset"], cost["variant"])
            found[place] = {"seconds": cost["fit_seconds"], "evaluations": cost["unet_evaluations"]}
    return found


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    trained = f"{row['training_images']} images" if row["training_images"] else row["keyword_set"]
    ep = f"{100 * row['ep']:.0f} [{100 * row['ep_low']:.0f}, {100 * row['ep_high']:.0f}]"
    flagged = f"{100 * row['flagged'][0]:.0f} %" if row["flagged"] else ""
    rmse = f"{row['rmse'][0]:.3f}" if row["rmse"] and row["rmse"][0] is not None else ""
    seconds = f"{row['seconds']:.1f} s" if "seconds" in row else ""
    shown = f"{row['evaluations']:,}" if row.get("evaluations") is not None else ""
    return f"| `{row['method']}/{row['preset']}` | {row['theme']} | {trained} | {ep} | {flagged} | {rmse} | {seconds} | {shown} |"


def turned(path: Path) -> str:
    """EP and change of benign pictures at every strength that was measured, and whether they grow with it."""
    found = json.loads(path.read_text(encoding="utf-8"))
    knobs = sorted({at["strength"] for one in found.values() for at in one["at"]})
    head = ["method", "theme", *(f"EP, RMSE at {knob:g}" for knob in knobs), "EP grows"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, one in found.items():
        method, theme = name.split()
        at = {figure["strength"]: figure for figure in one["at"]}
        shown = [
            f"{100 * at[k]['ep']:.0f} [{100 * at[k]['ep_low']:.0f}, {100 * at[k]['ep_high']:.0f}], {at[k]['rmse']:.3f}"
            if k in at
            else ""
            for k in knobs
        ]
        lines.append(
            f"| `{method}` | {theme} | {' | '.join(shown)} | {grows([at[k] for k in knobs if k in at])} |"
        )
    return "\n".join(lines)


def grows(figures: list[dict[str, float]]) -> str:
    """Of EP, "yes": it never falls; "within noise": it falls, but not below the interval before it; else "no". Then whether RMSE falls."""
    pairs = list(pairwise(figures))
    said = "no"
    if all(after["ep"] >= before["ep"] for before, after in pairs):
        said = "yes"
    elif all(after["ep_high"] >= before["ep"] for before, after in pairs):
        said = "within noise"
    return said if all(after["rmse"] >= before["rmse"] for before, after in pairs) else f"{said}; RMSE falls"


def written(page: str, table: str, begin: str = BEGIN) -> str:
    """The page with the table between its markers. Raises SystemExit when it has none."""
    before, found, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise SystemExit(f"the page has no line {begin!r} followed by {END!r}")
    return f"{before}{begin}\n{table}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, nargs="?")
    parser.add_argument("--strengths", type=Path, help="a file of benchmarks/erasure.py")
    parser.add_argument("--write", type=Path, help="a page with markers")
    parser.add_argument("--weak", action="store_true", help="list what is not clear of zero")
    options = parser.parse_args()
    if (options.report is None) == (options.strengths is None):
        parser.error("give the folder of a report, or --strengths FILE")
    if options.strengths:
        show(turned(options.strengths), STRENGTHS, options.write)
        return
    found = sorted(rows(options.report), key=lambda row: (row["method"], row["preset"]))
    show("\n".join([HEAD, *map(line, found)]), BEGIN, options.write)
    weak = [row for row in found if not row["ep_low"] > 0]
    if options.weak:
        print(f"\nnot clear of zero: {len(weak)} of {len(found)}", *map(line, weak), sep="\n")
        sys.exit(1 if weak else 0)


def show(table: str, begin: str, page: Path | None) -> None:
    """Print a table, and put it into a page."""
    print(table)
    if page:
        page.write_text(written(page.read_text(encoding="utf-8"), table, begin), encoding="utf-8")


if __name__ == "__main__":
    main()
