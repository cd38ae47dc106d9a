"""Headline numbers in git: small files, so that `dvc metrics` and `dvc plots` compare any two commits without a download.

One file per suite and method, because two people who add methods, or suites, then change different files.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

from palimpsest import store
from palimpsest.runs import BASE

METRICS = Path("metrics")
PLOTS = Path("plots")
METHODS = ("ep", "grd", "benign")  # numbers of a method: `<kind>.<method>.<...>.<suite>.<theme or measure>`


def by_place(numbers: Mapping[str, float]) -> dict[tuple[str, str], dict[str, float]]:
    """The numbers of a report by suite and method: `ep.<method>.<...>.<suite>.<theme>`, the base's `base_unsafe.<suite>.<theme>`."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in sorted(numbers.items()):
        kind, *parts = name.split(".")
        if kind in METHODS:
            method, *place = parts
            found.setdefault((place[-2], method), {})[".".join([kind, *place])] = value
        elif kind == "base_unsafe":
            found.setdefault((parts[0], BASE), {})[name] = value
    return found


def publish(report: Path, experiment: str, root: Path) -> list[str]:
    """Write `metrics/<experiment>/<suite>/<method>.json` and `plots/.../<method>.csv` of a report; returns what changed.

    Files of suites and methods that the report no longer has are removed.
    """
    wanted: dict[Path, str] = {}
    for (suite, method), numbers in by_place(store.read_json(report / "metrics.json")).items():
        place = Path(experiment, suite)
        wanted[METRICS / place / f"{method}.json"] = json.dumps(numbers, indent=1, sort_keys=True) + "\n"
        rows = [
            [name.removeprefix("ep."), value] for name, value in numbers.items() if name.startswith("ep.")
        ]
        if rows:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([["cell", "ep"], *rows])
            wanted[PLOTS / place / f"{method}.csv"] = text.getvalue()
    changed = [path for path, text in wanted.items() if _write(root / path, text)]
    for folder in (METRICS / experiment, PLOTS / experiment):
        for path in sorted((root / folder).rglob("*.*")):
            if path.relative_to(root) not in wanted:
                path.unlink()
                changed.append(path.relative_to(root))
    return [path.as_posix() for path in changed]


def _write(path: Path, text: str) -> bool:
    """Write a small file whole unless it says so already; whether it was written."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return True
