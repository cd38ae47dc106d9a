"""Step `report`: the page, its figures and its tables. The folder appears whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from palimpsest import store
from palimpsest.job import Input, Job
from palimpsest.params import Params, parse
from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.page import write_report
from palimpsest.steps import paired, parts


def commit() -> str:
    """The commit of the project and whether files differ from it; "unknown" outside a git checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head[:12]} with local changes" if dirty else head[:12]


def committed() -> str:
    """The day of that commit, which does not hang on when a report is made; "" outside a git checkout."""
    command = ["git", "log", "-1", "--format=%cs"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def identities(runs: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(method, preset, variant) -> the identity columns of the table."""
    names = ("method", "preset", "theme", "keyword_set", "training_images")
    return {
        (run["method"], run["preset"], run["variant"]): {name: run[name] for name in names} for run in runs
    }


def identified(
    items: list[Input],
    known: dict[tuple[str, str, str], dict[str, Any]],
    bases: dict[tuple[str, str, str], str] | None = None,
) -> list[tuple[dict[str, Any], Path]]:
    """Inputs with their identity; baselines under another sampler keep their preset. bases: preset of the base of each run."""
    base = known["sd", "default", "none"]
    found = []
    for item in items:
        where = item.where
        identity = known.get(
            (where["method"], where["preset"], where["variant"]), {**base, "preset": where["preset"]}
        )
        extra = {name: where[name] for name in ("suite", "detector") if name in where}
        if bases:
            extra["base"] = bases.get((where["method"], where["preset"], where["variant"]), "default")
        found.append(({**identity, **extra}, item.path))
    return found


def fits(
    costs: list[dict[str, Any]], known: dict[tuple[str, str, str], dict[str, Any]]
) -> list[dict[str, Any]]:
    """One row per fit, from the costs that travel with the scores."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in costs:
        place = (row["method"], row["preset"], row["variant"])
        if row["fit_seconds"] is not None and place in known:
            found[place] = {
                **known[place],
                "seconds": row["fit_seconds"],
                "peak_memory_mb": row["fit_peak_memory_mb"],
                "unet_evaluations": row["unet_evaluations"],
                "losses": row["losses"],
            }
    return list(found.values())


def environments(costs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The distinct environments that made the artifacts."""
    found: list[dict[str, Any]] = []
    for row in costs:
        made = row["environment"]
        entry = {
            "versions": {"python": made["python"], **made["libraries"]},
            "hardware": {name: made[name] for name in ("processor", "accelerator", "system")},
        }
        if entry not in found:
            found.append(entry)
    return found


def with_costs(
    cells: Any, costs: list[dict[str, Any]], known: dict[tuple[str, str, str], dict[str, Any]]
) -> Any:
    """The table with the cost columns filled, for showing; the table itself stays free of times."""
    import polars as pl

    totals: dict[tuple[Any, ...], list[float]] = {}
    for row in costs:
        identity = known.get((row["method"], row["preset"], row["variant"]))
        if identity:
            total = totals.setdefault((*identity.values(), row["suite"]), [0.0, 0.0, 0.0, 0.0])
            total[0] += row["sampling_seconds"]
            total[1] += row["images"]
            total[2], total[3] = row["fit_seconds"] or 0.0, row["fit_peak_memory_mb"] or 0.0
    names = ["method", "preset", "theme", "keyword_set", "training_images", "suite"]
    filled = [
        {
            **dict(zip(names, key, strict=True)),
            # no time at all: the images were made elsewhere
            "seconds_per_image": seconds / images if images and seconds else None,
            "fit_seconds": fit or None,
            "fit_peak_mb": memory or None,
        }
        for key, (seconds, images, fit, memory) in totals.items()
    ]
    kinds = {
        "training_images": pl.Int64,
        "seconds_per_image": pl.Float64,
        "fit_seconds": pl.Float64,
        "fit_peak_mb": pl.Float64,
    }
    frame = pl.DataFrame(filled, schema_overrides=kinds)
    return cells.join(frame, on=names, how="left", nulls_equal=True)


def costs_of(path: Path) -> list[dict[str, Any]]:
    """What fitting and sampling cost, as the aggregation left it; one row per scored shard."""
    rows = store.read_parquet(path).to_dicts()
    known = {text: json.loads(text) for text in {row["environment"] for row in rows}}
    return [{**row, "environment": known[row["environment"]]} for row in rows]


def classifiers_of(job: Job) -> dict[str, Any] | None:
    """How right the detectors are, where there were labels to tell."""
    if not job.of("classifiers"):
        return None
    path = job.one("classifiers").path
    meta = store.read_meta(path)
    rows = store.read_parquet(path).to_dicts()
    return {"rows": rows, "agreement": meta.get("agreement", []), "people": meta.get("people", {})}


def described(method: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a settings file's module, with what the settings file says instead: its own name and title, perhaps its paper."""
    own = {key: value for key, value in method.items() if key != "module"}
    return {**dataclasses.asdict(importlib.import_module(method["module"]).INFO), **own}


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a report, by path: `meta.json` holds them and is sealed, so it vouches for the whole folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def later(job: Job, params: Params, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What takes long to find: the inputs of a report that come from all scores."""
    pairs, ranks = paired.compared(job, params, runs)
    rates = parts.table(job, params, runs) if params.quality.grd else None
    return {"pairs": pairs, "ranks": ranks, "parts": rates}


def run(job: Job) -> None:
    params = parse(job.args["params"])
    table = job.one("aggregate")
    costs = costs_of(job.one("costs").path)
    runs = store.read_meta(table.path)["runs"]
    cells, known = store.read_parquet(table.path), identities(runs)
    gates = store.read_json(job.one("gates").path)["gates"] if job.of("gates") else None
    measured = job.of("quality_table")
    bases = {(run["method"], run["preset"], run["variant"]): run["base"] for run in runs}
    inputs = ReportInputs(
        classifiers=classifiers_of(job),
        params=params,
        cells=with_costs(cells, costs, known),
        commit=commit(),
        date=committed(),
        fits=fits(costs, known),
        comparisons=identified(job.of("compare"), known, bases),
        scores=identified(job.of("score"), known),
        gates=gates,
        keywords=store.read_json(job.one("keywords").path),
        environments=environments(costs),
        benchmarks={Path(path).stem: store.read_json(path) for path in job.args["benchmarks"]},
        quality=store.read_parquet(measured[0].path) if measured else None,
        measures=store.read_meta(measured[0].path)["measures"] if measured else {},
        methods=[described(method) for method in job.args["methods"]],
        toxicity=paired.toxicities(job, params),
        reference=Path(job.args["reference"]) if job.args.get("reference") else None,
    )
    folder = job.output.parent
    part = folder.with_name(f".{folder.name}.{store.node()}-{os.getpid()}.part")
    try:
        write_report(inputs, part, lambda: later(job, params, runs))
        cells.write_csv(part / "cells.csv")
        store.write_parquet(cells, part / "cells.parquet", {"experiment": params.experiment})
        store.write_json({"costs": costs}, part / "costs.json")
        job.check()
        store.write_json(job.meta({"files": digests(part)}), part / "meta.json")
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
