"""An experiment as a study: from the inputs of its report, or from the folder that the report is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest import store
from palimpsest.params import parse
from palimpsest.reports import select
from palimpsest.reports.conclusions import preserved
from palimpsest.reports.conclusions.study import Study, pairs_of
from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.select import Row

if TYPE_CHECKING:
    import polars as pl

CELLS, PAIRS, TOXICITY, SETTINGS = "cells.parquet", "pairs.parquet", "toxicity.parquet", "study.json"
QUALITY = "quality.parquet"
# What conclusions take of a method's description; the rest is in the report.
DESCRIPTION = ("name", "title", "stage", "fits", "needs")


def study_of(inputs: ReportInputs, rows: Sequence[Row]) -> Study:
    """The study of a report that is being written. rows: `select.rows_of(inputs)`."""
    pairs = inputs.pairs.to_dicts() if inputs.pairs is not None else []
    return Study(
        inputs.params.experiment,
        inputs.params,
        preserved.joined(rows, inputs.quality, inputs.params),
        pairs=pairs_of(pairs),
        toxicity=inputs.toxicity,
        measures=preserved.measures(inputs.quality),
        definition_ids=preserved.definition_ids(inputs.quality),
    )


def is_experiment(folder: Path) -> bool:
    """Whether a folder is a report with its tables."""
    return all((folder / name).is_file() for name in (CELLS, SETTINGS))


def settings_of(inputs: ReportInputs) -> dict[str, Any]:
    """What `load` needs beside the tables: the settings, and what the methods say of themselves."""
    methods = [{key: info[key] for key in DESCRIPTION if key in info} for info in inputs.methods]
    return {"params": inputs.params.model_dump(mode="json"), "methods": methods}


def write_tables(inputs: ReportInputs, folder: Path) -> None:
    """Write what `load` reads, but for the table of cells: settings, paired comparisons, toxicity, quality."""
    import polars as pl

    # the order of suites and rules says which of them speak, so the keys are not sorted
    with store.atomic(folder / SETTINGS) as part:
        part.write_text(json.dumps(settings_of(inputs), indent=1) + "\n", encoding="utf-8")
    if inputs.pairs is not None:
        store.write_parquet(inputs.pairs, folder / PAIRS)
    if inputs.quality is not None:
        store.write_parquet(inputs.quality, folder / QUALITY, {"measures": dict(inputs.measures)})
    if inputs.toxicity:
        store.write_parquet(pl.DataFrame(inputs.toxicity, infer_schema_length=None), folder / TOXICITY)


def load(folder: Path) -> Study:
    """The study that a report's folder holds.

    Raises FileNotFoundError for a folder without the tables, CorruptArtifact for damaged ones.
    """
    folder = Path(folder)
    if not is_experiment(folder):
        raise FileNotFoundError(
            f"{folder} holds no results: expected {CELLS} and {SETTINGS}, as in reports/<experiment> after `make report`, "
            "or the published tables, as in data/reference"
        )
    settings = store.read_json(folder / SETTINGS)
    cells = store.read_parquet(folder / CELLS)
    inputs = ReportInputs(
        params=parse(settings["params"]),
        cells=cells,
        commit="",
        methods=settings["methods"],
        pairs=_optional(folder / PAIRS),
        toxicity=_rows(_optional(folder / TOXICITY)),
        quality=_optional(folder / QUALITY),
    )
    return study_of(inputs, select.rows_of(inputs))


def _optional(path: Path) -> pl.DataFrame | None:
    return store.read_parquet(path) if path.is_file() else None


def _rows(frame: pl.DataFrame | None) -> list[Mapping[str, Any]]:
    return [] if frame is None else list(frame.to_dicts())
