"""After a change of code exactly the cells run whose code it is. Every test works on a copy of one finished project."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.pipeline import plugins
from tests.pipeline.project import Project

GIT = ("git", "-c", "user.name=scenario", "-c", "user.email=scenario@localhost", "-c", "commit.gpgsign=false")


def test_a_finished_project_has_nothing_to_do(project: Project) -> None:
    run = project.run()
    run.made()
    assert "Nothing to be done" in run.output
    # the run asked its server for all jobs itself; a script of Snakemake's would have been left a place
    assert not (project.folder / ".snakemake/scripts").exists()


@pytest.mark.pipeline_slow
def test_editing_one_methods_module_runs_its_cells_the_table_and_the_report(project: Project) -> None:
    project.edit("methods/dusk", "shaded(pipeline, 0.1)", "shaded(pipeline, 0.2)")
    run = project.run()
    run.made(generate=2, score=2, compare=2, aggregate=1, report=1)
    assert all("/dusk/" in path for path in run.new if not path.startswith(("data/tables/", "reports/")))


@pytest.mark.pipeline_slow
def test_editing_a_helper_that_two_methods_share_runs_the_cells_of_both(project: Project) -> None:
    project.edit("methods/_shade", ".detach() - amount", ".detach() - 2 * amount")
    run = project.run()
    run.made(erase=1, generate=4, score=4, compare=4, aggregate=1, report=1)
    assert not any("/sd/" in path for path in run.new)


def test_comments_docstrings_layout_and_touch_run_nothing(project: Project) -> None:
    project.edit(
        "methods/dim", '"""Darken a little."""', '"""Make the picture a little darker."""  # by its bias'
    )
    project.edit("methods/_shade", "return {NAME:", "return {\n        NAME:")
    project.edit("job", "import annotations\n", "import annotations\n\n# the driver\n\n")
    for path in (project.folder / "src").rglob("*.py"):
        os.utime(path)
    project.run().made()


def test_older_code_finds_its_older_artifacts_again(project: Project) -> None:
    def git(*words: str) -> None:
        subprocess.run([*GIT, *words], cwd=project.folder, check=True, capture_output=True)

    git("init", "-q", "-b", "main")
    git("add", "src")
    git("commit", "-q", "-m", "before")
    project.edit("methods/dusk", "shaded(pipeline, 0.1)", "shaded(pipeline, 0.2)")
    git("commit", "-q", "-a", "-m", "after")
    assert project.run("-n").output.count("compare") > 0
    git("checkout", "-q", "HEAD~1")
    project.run().made()


def test_adding_a_method_runs_its_cells_the_table_and_the_report(project: Project) -> None:
    project.add_method("night", plugins.NIGHT)
    run = project.run()
    run.made(generate=2, score=2, compare=2, aggregate=1, report=1)
    assert all("/night/" in path for path in run.new if not path.startswith(("data/tables/", "reports/")))
    assert "Night" in (project.folder / "reports/scratch/index.html").read_text(encoding="utf-8")


@pytest.mark.pipeline_slow
@pytest.mark.parametrize("prompts", [0, 2])
def test_with_scores_alone_a_new_method_runs_its_cells(project: Project, prompts: int) -> None:
    """What was not pulled is made only where a new cell reads it; what reads it too and is there stays."""
    gone = ["models/dim", "data/generations", *(["data/shared/prompts"] if prompts else [])]
    for folder in gone:
        shutil.rmtree(project.folder / folder)
    project.run().made()
    project.add_method("night", plugins.NIGHT)
    jobs = {"generate": 2, "score": 2, "compare": 2, "aggregate": 1, "report": 1}
    run = project.run()
    run.made(**({"prompts": prompts, **jobs} if prompts else jobs))
    assert not any("/sd/" in path for path in run.new)
