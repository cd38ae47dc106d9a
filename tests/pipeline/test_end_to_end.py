"""The pipeline as a user runs it: from prompts to a report, again without work, and through a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

from palimpsest import store
from tests.pipeline.project import ROOT, Project, stages

BROKEN = """
from palimpsest.methods.contract import Info
from palimpsest.methods.uce import Settings, apply

INFO = Info(name="broken", title="Broken", stage="closed form", trains="nothing", fits=True, paper="none", bibtex="", code="none",
            licence="none", fidelity="external")


def fit(pipeline, target, data, settings, seed):
    raise MemoryError("CUDA out of memory")
"""
FAULT = 'raise MemoryError("CUDA out of memory")'


def test_from_prompts_to_report_and_then_nothing(tmp_path: Path) -> None:
    project = Project(tmp_path)
    done = project.snakemake()
    assert done.returncode == 0, done.stdout
    assert stages(project.artifacts()) == {
        "prompts": 2, "keywords": 1, "erase": 1, "generate": 4, "score": 4, "reference": 2, "compare": 2,
        "aggregate": 1, "report": 1,
    }  # fmt: skip
    page = (tmp_path / "reports/scratch/index.html").read_text(encoding="utf-8")
    assert "UCE" in page and "data:image/" in page
    cells = pl.read_parquet(tmp_path / "reports/scratch/cells.parquet")
    assert set(cells["status"]) <= {"ok", "undefined"}
    assert cells.filter(pl.col("method") == "uce", dataset="overall", suite="nsfw")["n"].to_list() == [4, 4]
    assert cells.equals(pl.read_csv(tmp_path / "reports/scratch/cells.csv", schema=cells.schema))
    generation = next(Path(tmp_path / "data/generations/uce").rglob("nsfw-0.*.parquet"))
    meta = store.read_meta(generation)
    assert meta["key"] in generation.name and meta["recipe"]["args"]["sampler"]["steps"] == 2
    again = project.snakemake("-n")
    assert again.returncode == 0 and "Nothing to be done" in again.stdout


@pytest.mark.pipeline_slow
def test_a_failure_costs_its_dependants_only_and_the_report_says_so(
    tmp_path: Path, server: dict[str, str]
) -> None:
    plugin = tmp_path / "site"
    (plugin / "broken-1.0.dist-info").mkdir(parents=True)
    (plugin / "broken-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n"
    )
    (plugin / "broken-1.0.dist-info/entry_points.txt").write_text(
        "[palimpsest.methods]\nbroken = broken_method\n"
    )
    (plugin / "broken_method.py").write_text(BROKEN)
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", methods={"sd": ["default"], "broken": []})
    (project.folder / "methods").unlink()
    shutil.copytree(ROOT / "methods", project.folder / "methods")
    settings = {"method": "broken", "title": "Broken", "presets": {"default": {}}, "run": ["default"]}
    (project.folder / "methods/broken.yaml").write_text(yaml.safe_dump(settings))
    project.environment |= {
        **server,
        "PYTHONPATH": os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }

    done = project.snakemake()
    assert done.returncode != 0
    assert "erase broken/default/uncased.detailed" in done.stdout and "CUDA out of memory" in done.stdout
    assert stages(project.artifacts()) == {
        "prompts": 2,
        "keywords": 1,
        "generate": 2,
        "score": 2,
        "reference": 2,
    }

    partial = project.snakemake("partial")
    assert partial.returncode == 0, partial.stdout
    cells = pl.read_parquet(project.folder / "reports/scratch/cells.parquet")
    lost = cells.filter(method="broken")
    assert set(lost["status"]) == {"oom"} and "CUDA out of memory" in lost["reason"][0]
    assert "CUDA out of memory" in (project.folder / "reports/scratch/index.html").read_text(encoding="utf-8")

    mended = BROKEN.replace("Settings, apply", "Settings, apply, fit as real").replace(
        FAULT, "return real(*given)"
    )
    (plugin / "broken_method.py").write_text(
        mended.replace("pipeline, target, data, settings, seed", "*given")
    )
    before = project.artifacts()
    done = project.snakemake()
    assert done.returncode == 0, done.stdout
    assert stages(project.artifacts() - before) == {
        "erase": 1,
        "generate": 2,
        "score": 2,
        "compare": 2,
        "aggregate": 1,
        "report": 1,
    }


def test_a_run_without_its_inputs_stops_at_once_and_says_what_to_put_where(tmp_path: Path) -> None:
    project = Project(tmp_path)
    shutil.rmtree(tmp_path / "data/prompts")
    (tmp_path / "models/micro").unlink()
    assert project.snakemake("-n").returncode == 0
    done = project.snakemake()
    assert done.returncode != 0
    for part in (
        "data/prompts/template.csv",
        "data/prompts/coco.csv",
        "models/micro/stable-diffusion",
        "models/micro/vqa",
    ):
        assert part in done.stdout, done.stdout
    assert project.artifacts() == set()


@pytest.mark.parametrize("words", [["--config", "seed=3"]])
def test_settings_on_the_command_line_are_refused(tmp_path: Path, words: list[str]) -> None:
    done = Project(tmp_path).snakemake("-n", *words)
    assert done.returncode != 0 and "settings come from files only" in done.stdout
