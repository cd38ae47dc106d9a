"""Step `quality_table`: one table of everything that was measured on pictures, with intervals and changes against the base."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import polars as pl

from palimpsest import store
from palimpsest.job import Input, Job
from palimpsest.metrics import frechet, grd, kernel, quality_table
from palimpsest.metrics.contract import Metric

Place = tuple[str, ...]
PREFIX = "features_"


def grouped(inputs: Iterable[Input], last: str) -> dict[Place, list[Input]]:
    """Inputs by method, preset, variant, suite and measure or detector; the shards of a cell together, in order."""
    found: dict[Place, list[Input]] = {}
    for item in inputs:
        place = tuple(item.where[name] for name in ("method", "preset", "variant", "suite", last))
        found.setdefault(place, []).append(item)
    return {place: sorted(items, key=lambda i: int(i.where["shard"])) for place, items in found.items()}


def joined(items: Iterable[Input]) -> pl.DataFrame:
    """The shards of one cell as one frame."""
    return pl.concat([store.read_parquet(item.path) for item in items])


def definitions(kinds: Iterable[str]) -> dict[str, str]:
    """Metric -> definition id, of what these measures give and of what is computed here."""
    modules = [
        frechet,
        kernel,
        grd,
        *(importlib.import_module(f"palimpsest.metrics.{kind}") for kind in kinds),
    ]
    declared: list[Metric] = [metric for module in modules for metric in getattr(module, "METRICS", ())]
    return {metric.name: metric.definition_id for metric in declared}


class Table:
    """Collects the rows of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.args = job.args
        self.confidence = float(job.args["confidence"])
        self.rows: list[dict[str, Any]] = []
        self._bases: dict[Place, pl.DataFrame] = {}

    def run_of(self, place: Place) -> dict[str, Any] | None:
        """The run at a place; baselines of other samplers count as runs of the base."""
        known: dict[Place, dict[str, Any]] = {
            (r["method"], r["preset"], r["variant"]): r for r in self.args["runs"]
        }
        if place[:3] in known:
            return dict(known[place[:3]])
        if place[0] != self.args["base"]:
            return None
        own = next(r for r in self.args["runs"] if r["method"] == place[0])
        return {**own, "preset": place[1], "base": place[1]}

    def base_of(
        self, place: Place, run: dict[str, Any], cells: dict[Place, list[Input]]
    ) -> pl.DataFrame | None:
        """The base's frame of the same suite; None for the base itself, and where it was not measured."""
        theirs = (self.args["base"], run["base"], "none", *place[3:])
        if place[0] == self.args["base"] or theirs not in cells:
            return None
        if theirs not in self._bases:
            self._bases[theirs] = joined(cells[theirs])
        return self._bases[theirs]

    def add(self, place: Place, run: dict[str, Any], found: Iterable[dict[str, Any]], measure: str) -> None:
        names = ("method", "preset", "theme", "keyword_set", "training_images")
        identity = {name: run[name] for name in names}
        for row in found:
            self.rows.append(
                {
                    "experiment": self.args["experiment"],
                    **identity,
                    "suite": place[3],
                    "measure": measure,
                    **row,
                }
            )

    def measured(self) -> None:
        """Means over pictures, FID and KID."""
        cells = grouped(self.job.of("quality"), "measure")
        real = {
            (item.where["suite"], item.where["measure"]): store.read_parquet(item.path)
            for item in self.job.of("real")
        }
        for place, items in cells.items():
            run = self.run_of(place)
            if run is None:
                continue
            spec = self.args["measures"][place[4]]
            frame = joined(items)
            base = self.base_of(place, run, cells)
            lost = (
                quality_table.missing(frame, base, (*spec["gives"], *_sets(spec))[0])
                if base is not None
                else None
            )
            if lost is not None:
                self.add(place, run, [lost], place[4])
                continue
            names = [name for name in spec["gives"] if name in frame.columns]
            found = quality_table.value_rows(frame, base, names, self.confidence)
            others = {"": real[place[3], place[4]]} if (place[3], place[4]) in real else {}
            others |= {"base_": base} if base is not None else {}
            for name, endings in spec["sets"].items():
                found += quality_table.set_rows(
                    frame, others, f"{PREFIX}{name}", (endings[0], endings[1]), self.confidence
                )
            self.add(place, run, found, place[4])

    def parts(self) -> None:
        """GRD of every variant that erases a theme with parts, and of those that erase all."""
        cells = grouped(self.job.of("score"), "detector")
        for theme, spec in self.args["grd"].items():
            for place, items in cells.items():
                run = self.run_of(place)
                if run is None or place[4] != spec["detector"] or run["theme"] not in (theme, "all"):
                    continue
                base = self.base_of(place, run, cells)
                if base is None:
                    continue
                frame = joined(items)
                lost = quality_table.missing(frame, base, "grd")
                row = lost or quality_table.grd_row(base, frame, spec, self.confidence)
                self.add(place, run, [row], f"{spec['detector']} {theme}")


def _sets(spec: dict[str, Any]) -> list[str]:
    return [f"fid_base_{endings[0]}" for endings in spec["sets"].values()]


def run(job: Job) -> None:
    table = Table(job)
    table.measured()
    table.parts()
    kinds = sorted({spec["kind"] for spec in job.args["measures"].values()})
    identities = {item.where["measure"]: store.read_meta(item.path)["measure"] for item in job.of("quality")}
    frame = quality_table.finish(table.rows, definitions(kinds))
    job.write_parquet(frame, {"measures": identities}, measured=False)
