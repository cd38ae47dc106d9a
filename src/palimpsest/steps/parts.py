"""Which parts were erased: EP of every class of the detectors that GRD counts, from the stored scores."""

from __future__ import annotations

from typing import Any

import polars as pl

from palimpsest.job import Job
from palimpsest.metrics import part_rates
from palimpsest.params import Params
from palimpsest.steps.aggregate import BASE, grouped, joined, places

EVERY_THEME = "all"


def table(job: Job, params: Params, runs: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows of `metrics.part_rates` of every variant that erases a theme with parts, and of those that erase all; runs: of the table."""
    rows: list[dict[str, Any]] = []
    scores = grouped(job.of("score"))
    bases: dict[tuple[str, ...], pl.DataFrame] = {}
    for theme, spec in params.quality.grd.items():
        for run, place in places(runs, scores):
            unsafe = place[3] in params.suites and params.suites[place[3]].kind == "unsafe"
            if place[4] != spec.detector or run["theme"] not in (theme, EVERY_THEME) or not unsafe:
                continue
            before = (BASE, run["base"], "none", *place[3:])
            if before not in scores:
                continue
            if before not in bases:
                bases[before] = joined(scores[before])
            erased = joined(scores[place])
            if erased["image_id"].n_unique() != bases[before]["image_id"].n_unique():
                continue  # the table of GRD says of it that it is missing
            found = part_rates.part_rates(
                bases[before],
                erased,
                spec.target,
                spec.other,
                threshold=spec.threshold,
                resamples=params.statistics.resamples,
                confidence=params.statistics.confidence,
                seed=params.seed,
            )
            names = ("method", "preset", "theme", "keyword_set", "training_images")
            who = {name: run[name] for name in names} | {
                "suite": place[3],
                "detector": place[4],
                "parts_of": theme,
            }
            rows += [{**who, **row} for row in found]
    return pl.DataFrame(rows, schema=part_rates.SCHEMA, orient="row")
