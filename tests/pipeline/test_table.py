"""The final table is a function of its recipe: the file is the same, byte for byte, whoever makes it, when, and how often."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from palimpsest import forkserver, store
from tests.pipeline.project import Project, costs_of, tables

pytestmark = pytest.mark.pipeline_slow
MEASURED = {"environment", "seconds", "peak_memory_mb", "costs"}


def forget(project: Project, *patterns: str) -> None:
    """Remove artifacts, and the report with its whole folder."""
    for pattern in patterns:
        project.find(pattern).unlink()
    shutil.rmtree(project.find("reports/scratch-*/index.html").parent)


def test_the_table_made_again_elsewhere_is_the_same_file(project: Project) -> None:
    table = project.find("data/tables/*/cells.*.parquet")
    costs = Path(costs_of(str(table)))
    before, spent = tables(project), costs.read_bytes()
    forget(project, "data/tables/*/cells.*.parquet", "data/tables/*/costs.*.parquet")
    # a process of its own instead of a fork of a warm one, and threads of the libraries where there was one
    project.environment |= {forkserver.SETTING: "0", "POLARS_MAX_THREADS": "3", "OMP_NUM_THREADS": "2"}
    project.run().made(aggregate=1, report=1)
    assert tables(project) == before
    assert costs.read_bytes() != spent


def test_what_differs_from_run_to_run_lies_beside_the_table(project: Project) -> None:
    table = project.find("data/tables/*/cells.*.parquet")
    costs = Path(costs_of(str(table)))
    assert not MEASURED & store.read_meta(table).keys()
    assert store.read_meta(table)["recipe"] == store.read_meta(costs)["recipe"]
    assert (
        store.read_meta(costs)["environment"]["libraries"]["polars"] and store.read_meta(costs)["seconds"] > 0
    )
    rows = store.read_parquet(costs).to_dicts()
    assert {(row["method"], row["suite"]) for row in rows} == {
        (method, suite) for method in ("sd", "dim", "dusk") for suite in ("nsfw", "coco")
    }
    assert all(row["sampling_seconds"] > 0 and row["images"] in (2, 4) for row in rows)
    assert all((row["fit_seconds"] is not None) == (row["method"] == "dim") for row in rows)
    assert json.loads(rows[0]["environment"])["libraries"].keys() >= {"torch", "numpy"}
    shown = store.read_json(project.find("reports/scratch-*/costs.json"))["costs"]
    assert [row["sampling_seconds"] for row in shown] == [row["sampling_seconds"] for row in rows]


@pytest.mark.parametrize("lost", ["cells", "costs"])
def test_a_table_and_its_costs_are_made_together(project: Project, lost: str) -> None:
    before = tables(project)
    project.find(f"data/tables/*/{lost}.*.parquet").unlink()
    project.run().made()  # the report stands, and nothing is asked for
    forget(project)
    run = project.run()
    assert run.code == 0 and dict(run.finished) == {"aggregate": 1, "report": 1}, run.output
    assert project.find("data/tables/*/costs.*.parquet").is_file() and tables(project) == before
