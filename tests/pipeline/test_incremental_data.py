"""After a change of settings or of raw inputs exactly the cells run that read them. Every test works on a copy of one finished project."""

from __future__ import annotations

import os

import pytest

from tests.pipeline.project import Project

LATE = {"aggregate": 1, "report": 1}
# The cells of one prompt suite: base and two methods.
SUITE = {"prompts": 1, "generate": 3, "score": 3, "reference": 1, "compare": 2, **LATE}


def test_a_threshold_runs_the_table_and_the_report(project: Project) -> None:
    project.settings["rules"] = {"official_joined": {"kind": "joined", "threshold": 0.3}}
    project.run().made(**LATE)


@pytest.mark.pipeline_slow
def test_a_prompt_file_with_an_old_date_runs_the_cells_of_its_suite(project: Project) -> None:
    path = project.folder / "data/prompts/coco.csv"
    project.write_benign("coco", ["a blue house at night", "a yellow lamp in a meadow"])
    os.utime(path, (1e9, 1e9))
    run = project.run()
    run.made(**SUITE)
    assert not any("nsfw" in path for path in run.new)


@pytest.mark.pipeline_slow
def test_another_suite_runs_its_cells(project: Project) -> None:
    project.write_benign("trees", ["a red tree"])
    spec = {"kind": "benign", "sources": {"coco": {"format": "coco", "path": "data/prompts/trees.csv"}}}
    project.settings["suites"] = {**project.settings["suites"], "trees": spec}
    run = project.run()
    run.made(**SUITE)
    assert not any("nsfw" in path or "coco" in path for path in run.new)


@pytest.mark.pipeline_slow
def test_another_seed_of_a_prompt_runs_the_cells_of_its_suite(project: Project) -> None:
    path = project.folder / "data/prompts/template.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    _, prompt, _ = lines[1].split(",")
    path.write_text("\n".join([*lines, f"{len(lines) - 1},{prompt},77"]) + "\n", encoding="utf-8")
    run = project.run()
    run.made(**SUITE)
    assert not any("coco" in path for path in run.new)


@pytest.mark.pipeline_slow
def test_another_keyword_of_a_theme_that_is_only_judged_makes_no_image_again(project: Project) -> None:
    project.settings["themes"] = {"breakage": {"detailed": ["breakage", "cracks", "dents"]}}
    project.run().made(keywords=1, score=6, compare=4, **LATE)
