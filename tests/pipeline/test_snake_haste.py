"""Asking Snakemake's questions once changes no answer: jobs, reasons and resources are the same, and what is missing is still found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from palimpsest import forkserver
from palimpsest.snake_haste.scripts import plainly_ours
from tests.pipeline.project import ROOT, Project

PLAIN = """
import sys
from palimpsest import snake
snake.hasten = lambda: None
snake.declared = lambda function: function
from snakemake.cli import main
main(sys.argv[1:])
"""
# Snakemake's own plain output, which has every job with all it asks for.
LOOK = (
    "-n",
    "--workflow-profile",
    "none",
    "--cores",
    "3",
    "--executor",
    "local",
    "--rerun-triggers",
    "mtime",
)


def listed(text: str) -> list[list[str]]:
    """The jobs of a dry run, each as the words it is described by, without its number; in any order."""
    blocks = re.split(r"^\[.*\]$|^Job stats:$|\n\n", text, flags=re.MULTILINE)
    jobs = [block for block in map(str.strip, blocks) if re.match(r"(local)?rule \w+:", block)]
    return sorted(sorted(re.split(r"[,;\s]+", re.sub(r"jobid: \d+", "", job))) for job in jobs)


def plain(project: Project, *arguments: str) -> str:
    """What Snakemake says without our haste."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *project.command(*arguments)[3:]],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_a_dry_run_lists_the_same_jobs_with_the_same_requests(tmp_path: Path) -> None:
    project = Project(tmp_path)
    hastened = project.snakemake(*LOOK)
    assert hastened.returncode == 0, hastened.stdout
    plainly = plain(project, *LOOK)
    jobs = listed(hastened.stdout)
    assert jobs == listed(plainly)
    requests = [[word.partition("=")[0] for word in job] for job in jobs]
    assert len(jobs) == 19 and sum("mem_mb" in names and "runtime" in names for names in requests) == 18
    assert sum("Missing" in job for job in jobs) > 5


@pytest.mark.pipeline_slow
def test_a_dry_run_says_what_it_said(tmp_path: Path) -> None:
    """The logger of the default profile shows no job, so none is described, with or without `--quiet all`."""
    project = Project(tmp_path)
    hastened = project.snakemake("-n")
    plainly = plain(project, "-n")

    def said(text: str) -> list[str]:
        return [line for line in text.splitlines() if "Workflow start" not in line]

    assert hastened.returncode == 0 and "total" in hastened.stdout
    assert said(hastened.stdout) == said(plainly)
    assert said(project.snakemake("-n", "--quiet", "all").stdout) == said(plainly)


@pytest.mark.pipeline_slow
def test_jobs_made_again_are_the_same(tmp_path: Path) -> None:
    project = Project(tmp_path)
    again = (*LOOK, "--forcerun", "prompts", "keywords", "--until", "score")
    hastened = project.snakemake(*again)
    assert hastened.returncode == 0, hastened.stdout
    jobs = listed(hastened.stdout)
    assert jobs == listed(plain(project, *again))
    assert any("Forced" in job for job in jobs) and not any("aggregate:" in job for job in jobs)


@pytest.mark.pipeline_slow
def test_a_script_that_is_not_there_is_found_for_every_rule(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (project.folder / "workflow").unlink()
    (project.folder / "workflow").mkdir()
    (project.folder / "rules").unlink()
    (project.folder / "rules").mkdir()
    for path in (ROOT / "rules").glob("*.smk"):
        text = path.read_text(encoding="utf-8")
        (project.folder / "rules" / path.name).write_text(
            text.replace("scripts/cell.py", "scripts/absent.py")
        )
    (project.folder / "Snakefile").unlink()
    (project.folder / "Snakefile").write_text((ROOT / "Snakefile").read_text(encoding="utf-8"))
    said = project.snakemake("-n")
    assert said.returncode != 0 and "absent.py" in said.stdout


@pytest.mark.pipeline_slow
def test_the_run_asks_its_server_itself_and_without_one_the_script_does(project: Project) -> None:
    late = {"aggregate": 1, "report": 1}
    scripts = project.folder / ".snakemake/scripts"
    assert not scripts.exists()  # all jobs of the finished project were asked for by the run that made it
    tables = []
    for threshold, server in ((0.3, {}), (0.4, {forkserver.SETTING: "0"}), (0.3, {forkserver.SETTING: "0"})):
        project.settings["rules"] = {"official_joined": {"kind": "joined", "threshold": threshold}}
        for place in ("data/tables", "reports"):
            shutil.rmtree(project.folder / place)
        project.environment |= server
        run = project.run()
        assert run.code == 0 and set(run.started) == set(late), run.output
        assert scripts.exists() == bool(server)
        tables.append(project.find("data/tables/*/cells.*.parquet").read_bytes())
    assert tables[0] == tables[2] != tables[1]


def test_only_the_job_script_with_nothing_around_it_is_taken_over() -> None:
    plain = dict.fromkeys(("container_img", "conda_env", "env_modules", "shadow_dir", "bench_record"))
    ours = SimpleNamespace(is_local=True, local_path="/somewhere/workflow/scripts/cell.py", **plain)
    assert plainly_ours(ours)
    for change in (
        {"local_path": "/somewhere/workflow/scripts/other.py"},
        {"is_local": False},
        *({name: "something"} for name in plain),
    ):
        assert not plainly_ours(SimpleNamespace(**{**vars(ours), **change}))
