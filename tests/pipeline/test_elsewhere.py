"""What changes no weights, run by the pipeline: a filter, images made elsewhere, and a method that does not fit the model."""

from __future__ import annotations

import csv
import html
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

from palimpsest import store
from tests.pipeline import plugins
from tests.pipeline.project import Project

PLACE = "given/elsewhere"
pytestmark = pytest.mark.pipeline_slow


def scenario(folder: Path) -> Project:
    """A filter, a system with a manifest, and a method that is defined for another architecture."""
    project = Project(folder)
    project.own_sources()
    project.source("methods/_shade").write_text(plugins.SHADE, encoding="utf-8")
    project.add_method("dim", plugins.DIM.replace("fits=True,", 'fits=True, architectures=("sdxl",),'))
    settings = {
        "method": "external",
        "title": "A service",
        "run": ["default"],
        "presets": {"default": {"manifest": f"{PLACE}/m.csv"}},
    }
    (folder / "methods/service.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    micro = {"checker": "models/micro/safety-checker", "checker_revision": None}
    project.settings["methods"] = {"sd": ["default"], "safety_checker": [], "service": [], "dim": []}
    project.settings["overrides"] = {"safety_checker": micro}
    return project


def fill_in(project: Project, refused: set[str] = frozenset(), absent: set[str] = frozenset()) -> None:
    """A manifest as a lab would fill it in: one grey picture per row."""
    folder = project.folder / PLACE
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for suite, name, count in (("nsfw", "template", 4), ("coco", "coco", 2)):
        for place in range(count):
            key = f"{name}/{place:05d}/00"
            if key not in absent:
                value = int(30 * place)
                Image.fromarray(np.full((80, 80, 3), value, np.uint8)).save(folder / f"{name}{place}.png")
                file = "" if key in refused else f"{name}{place}.png"
                rows.append([suite, key, file, "content policy" if key in refused else ""])
    with open(folder / "m.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["suite", "image_id", "file", "refused"], *rows])


def overall(project: Project, method: str, suite: str) -> dict[str, object]:
    cells = pl.read_parquet(project.folder / "reports/scratch/cells.parquet")
    kept = cells.filter(
        method=method, suite=suite, dataset="overall", judged_theme="any", rule="official_joined"
    )
    return kept.row(0, named=True)


@pytest.mark.slow
def test_filters_services_and_methods_that_do_not_apply_stand_in_one_report(tmp_path: Path) -> None:
    project = scenario(tmp_path)
    nothing = project.run()
    assert nothing.code != 0 and not nothing.finished
    assert f"methods.service: there is no {PLACE}/m.csv" in nothing.output

    fill_in(project, absent={"template/00003/00"})
    failed = project.run()
    assert failed.code != 0
    assert "1 of 4 images of suite 'nsfw' are not in it, first 'template/00003/00'" in failed.output

    fill_in(project, refused={"template/00002/00", "coco/00001/00"})
    done = project.run()
    assert done.code == 0, done.output
    given = overall(project, "service", "nsfw")
    assert (given["n"], given["n_answered"], given["theme"], given["keyword_set"]) == (4, 3, "all", "fixed")
    assert overall(project, "service", "coco")["drift"] is None
    shown = store.read_parquet(project.find("data/generations/service/default/all.fixed/nsfw-0.*.parquet"))
    assert shown["decision"].to_list() == ["provided", "provided", "refused", "provided"]
    assert store.decode_png(shown["image"][1]["bytes"]).shape == (64, 64, 3)

    checked = store.read_parquet(
        project.find("data/generations/safety_checker/official/all.fixed/nsfw-0.*.parquet")
    )
    assert set(checked["decision"]) <= {"generated", "blocked_image"}
    withheld = checked.filter(decision="blocked_image")
    assert withheld["image"].null_count() == len(withheld)
    assert overall(project, "safety_checker", "nsfw")["n_answered"] == 4 - len(withheld)

    page = html.unescape((tmp_path / "reports/scratch/index.html").read_text(encoding="utf-8"))
    assert "not applicable: dim is defined for sdxl, and model.architecture is sd1" in page
    assert "A service" in page and "Answered" in page
    failures = pl.read_csv(tmp_path / "reports/scratch/tables/failures.csv")
    # of four images the base may have none that is unsafe: EP is then undefined, which is no failure
    failures = failures.filter(pl.col("status") != "undefined")
    assert set(failures.select("label", "status").rows()) == {("Dim", "skipped")}

    Image.fromarray(np.full((80, 80, 3), 200, np.uint8)).save(tmp_path / PLACE / "template0.png")
    project.run().made(generate=2, score=2, compare=2, aggregate=1, report=1)
