"""Step `aggregate`: the tidy table of all cells of an experiment, and a table of what they cost beside it.

Times, memory and environments differ from run to run, so they stay out of the table: equal scores give an equal file, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from palimpsest import store
from palimpsest.detectors import rules as judging
from palimpsest.job import Input, Job
from palimpsest.metrics import tables
from palimpsest.specs import Rule, Statistics

BASE = tables.BASE
READ = [*judging.KEYS, "label", "score"]
COSTS: dict[str, Any] = {
    "method": pl.String,
    "preset": pl.String,
    "variant": pl.String,
    "suite": pl.String,
    "shard": pl.String,
    "images": pl.Int64,
    "job_seconds": pl.Float64,
    "sampling_seconds": pl.Float64,
    "peak_memory_mb": pl.Float64,
    # images at once in the end, where memory ran out; null where it did not
    "smaller_batch": pl.Int64,
    "fit_seconds": pl.Float64,
    "fit_peak_memory_mb": pl.Float64,
    "unet_evaluations": pl.Int64,
    "losses": pl.List(pl.Float64),
    "keywords": pl.List(pl.String),
    "environment": pl.String,
}


def grouped(inputs: Iterable[Input]) -> dict[tuple[str, ...], list[Input]]:
    """Inputs by method, preset, variant, suite (and detector); the shards of a cell together, in order."""
    found: dict[tuple[str, ...], list[Input]] = {}
    for item in inputs:
        where = item.where
        place = (
            where["method"],
            where["preset"],
            where["variant"],
            where["suite"],
            where.get("detector", ""),
        )
        found.setdefault(place, []).append(item)
    return {place: sorted(items, key=lambda i: int(i.where["shard"])) for place, items in found.items()}


def joined(items: Iterable[Input], columns: list[str] | None = None) -> pl.DataFrame:
    """The shards of one cell as one frame."""
    return pl.concat([store.read_parquet(item.path, columns) for item in items])


def rows_of(job: Job) -> pl.DataFrame:
    """All rows of the table, unfinished."""
    args = job.args
    rules = {name: Rule.model_validate(rule) for name, rule in args["rules"].items()}
    statistics = Statistics.model_validate(args["statistics"])
    scores, comparisons = grouped(job.of("score")), grouped(job.of("compare"))
    cached: dict[tuple[str, ...], pl.DataFrame] = {}
    judged: dict[tuple[str, ...], dict[tuple[str, ...], pl.DataFrame]] = {}
    parts = [pl.DataFrame(schema=tables.SCHEMA)]
    for run, place in places(args["runs"], scores):
        read = judging.read_by(rules, place[4])
        if not read:  # a detector whose scores are for others, of parts for one
            continue
        base_place = (BASE, run["base"], "none", place[3], place[4])
        if base_place not in cached:
            cached[base_place] = joined(scores[base_place], READ)
        drift_shards = comparisons.get((*place[:4], ""))
        identity = {
            name: run[name] for name in ("method", "preset", "theme", "keyword_set", "training_images")
        }
        parts.append(
            tables.cell_rows(
                args["experiment"],
                cached[base_place],
                joined(scores[place], READ),
                {**identity, "suite": place[3], "detector": place[4]},
                read,
                args["themes"],
                statistics,
                args["seed"],
                kind=args["suites"][place[3]],
                drift=joined(drift_shards, ["image_id", "source", "rmse"]) if drift_shards else None,
                known=judged.setdefault(base_place, {}),
            )
        )
    parts += [skipped_row(args["experiment"], item) for item in args.get("skipped", ())]
    parts += [missing_row(args["experiment"], item, args["runs"]) for item in args.get("missing", ())]
    return pl.concat(parts)


def skipped_row(experiment: str, item: Mapping[str, Any]) -> pl.DataFrame:
    """The row of a variant that was not run on purpose, with its reason."""
    run = item["run"]
    identity = {name: run[name] for name in ("method", "preset", "theme", "keyword_set", "training_images")}
    return tables.skipped_row(experiment, identity, item["reason"])


def missing_row(experiment: str, item: Mapping[str, Any], runs: list[dict[str, Any]]) -> pl.DataFrame:
    """The row of a cell that could not be scored, with its status and reason."""
    where = item["where"]
    known = {(r["method"], r["preset"], r["variant"]): r for r in runs}
    run = known.get((where["method"], where["preset"], where["variant"]), {})
    identity: dict[str, Any] = {
        name: run[name] for name in ("theme", "keyword_set", "training_images") if name in run
    }
    identity |= {name: where[name] for name in ("method", "preset", "suite", "detector")}
    return tables.failed_row(experiment, identity, item["reason"]).with_columns(status=pl.lit(item["status"]))


def places(
    runs: list[dict[str, Any]], scores: Mapping[tuple[str, ...], Any]
) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """Every run with every place it was scored at; baselines of other samplers count as runs of the base."""
    known: dict[tuple[str, ...], dict[str, Any]] = {(r["method"], r["preset"], r["variant"]): r for r in runs}
    base = next(r for r in runs if r["method"] == BASE)
    found = []
    for place in scores:
        run = known.get(place[:3])
        if run is None and place[0] == BASE:
            run = {**base, "preset": place[1], "base": place[1]}
        if run is not None:
            found.append((run, place))
    return found


def costs_of(job: Job) -> pl.DataFrame:
    """Seconds and memory of fitting and sampling, one row per scored shard of the first detector; environments as JSON."""
    rows, seen = [], set()
    for item in job.of("score"):
        place = tuple(item.where[name] for name in ("method", "preset", "variant", "suite", "shard"))
        if place in seen:
            continue
        seen.add(place)
        made = store.read_meta(item.path)["generation"]
        fit = made.get("fit", {})
        rows.append(
            {
                **{name: item.where[name] for name in ("method", "preset", "variant", "suite", "shard")},
                "images": made["images"],
                "job_seconds": made["seconds"],
                "sampling_seconds": made["sampling_seconds"],
                "peak_memory_mb": made["peak_memory_mb"],
                "smaller_batch": made["halvings"][-1]["then"] if made.get("halvings") else None,
                "fit_seconds": fit.get("fit", {}).get("fit_seconds"),
                "fit_peak_memory_mb": fit.get("peak_memory_mb"),
                "unet_evaluations": fit.get("fit", {}).get("unet_evaluations"),
                "losses": fit.get("fit", {}).get("losses", []),
                "keywords": fit.get("fit", {}).get("keywords", []),
                "environment": json.dumps(made["environment"], sort_keys=True),
            }
        )
    return pl.DataFrame(rows, schema=COSTS, orient="row", strict=False)


def run(job: Job) -> None:
    table = tables.finish(rows_of(job))
    job.write_beside("costs", costs_of(job))
    job.write_parquet(table, {"runs": job.args["runs"]}, measured=False)
