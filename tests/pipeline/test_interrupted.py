"""Runs that are killed, edited under or started twice: nothing wrong is stored, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from palimpsest import store
from tests.pipeline import plugins
from tests.pipeline.project import Project, end, wait_until

# The cells of the method that waits.
REST = {"generate": 2, "score": 2, "compare": 2, "aggregate": 1, "report": 1}


@pytest.fixture
def waiting(project: Project) -> Iterator[tuple[Project, subprocess.Popen[str], list[int]]]:
    """A run whose two generations wait; with it the process and the process ids of these jobs."""
    project.add_method("waits", plugins.WAITS)
    with killed_at_last(project.begin("--cores", "2")) as process:
        files = wait_until(lambda: both(project) if process.poll() is None else fail(project))
        yield project, process, [int(path.suffix[1:]) for path in files]


def both(project: Project) -> list[Path]:
    found = list(project.folder.glob("waiting.*"))
    return found if len(found) == 2 else []


def fail(project: Project) -> None:
    pytest.fail((project.folder / "output.txt").read_text(encoding="utf-8"))


@contextmanager
def killed_at_last(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        if process.poll() is None:
            end(process)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def output(project: Project) -> str:
    return (project.folder / "output.txt").read_text(encoding="utf-8")


@pytest.mark.pipeline_slow
def test_a_second_run_stops_at_once_and_says_who_runs(waiting) -> None:
    project, process, _ = waiting
    before = project.artifacts()
    second = project.snakemake()
    assert second.returncode != 0
    said = " ".join(second.stdout.split())
    assert "another run is under way in this folder" in said
    assert f"process {process.pid} on {os.uname().nodename}" in said and "since 20" in said
    looked = project.snakemake("-n")
    assert looked.returncode == 0 and "generate" in looked.stdout
    assert "another run is under way" in project.snakemake("--unlock").stdout
    assert process.poll() is None and project.artifacts() == before


@pytest.mark.pipeline_slow
def test_after_snakemake_is_killed_its_jobs_end_and_the_next_command_completes(waiting) -> None:
    project, process, jobs = waiting
    end(process, group=False)
    wait_until(lambda: all(gone(pid) for pid in jobs), seconds=10)
    assert list((project.folder / ".snakemake/locks").iterdir())
    left = project.folder / f"data/scores/sd/half.parquet.{store.node()}-{process.pid}.part"
    left.write_bytes(b"half")
    folder = project.folder / f"reports/.scratch.{process.pid}.part"
    folder.mkdir()
    alive = project.folder / f"data/scores/sd/half.parquet.{store.node()}-{os.getpid()}.part"
    elsewhere = project.folder / "data/scores/sd/half.parquet.othernode-1.part"
    for path in (alive, elsewhere):
        path.write_bytes(b"half")
    (project.folder / "go").touch()
    run = project.run()
    run.made(**REST)
    assert f"Removed the lock of a run that was killed (process {process.pid}" in run.output
    assert not left.exists() and not folder.exists() and alive.exists() and elsewhere.exists()


@pytest.mark.pipeline_slow
def test_a_job_that_is_killed_is_recorded_with_its_signal_and_runs_again(waiting) -> None:
    project, process, jobs = waiting
    os.kill(jobs[0], signal.SIGKILL)
    (project.folder / "go").touch()
    assert process.wait() != 0
    (path,) = (project.folder / ".palimpsest/failed").glob("*.json")
    record = store.read_json(path)
    assert (record["status"], record["signal"]) == ("killed", signal.SIGKILL)
    assert record["step"] == "generate" and "memory" in record["reason"]
    assert f"failed: generate waits/default/uncased.detailed/{record['where']['suite']}/0" in output(project)
    assert not project.parts()
    run = project.run()
    run.made(generate=1, score=1, compare=1, aggregate=1, report=1)
    assert not path.exists()


@pytest.mark.pipeline_slow
def test_code_edited_during_a_run_fails_its_cells_and_stores_nothing(waiting) -> None:
    project, process, _ = waiting
    project.edit("methods/waits", "0.3)", "0.4)")
    before = project.artifacts()
    (project.folder / "go").touch()
    assert process.wait() != 0
    assert "the code changed since the plan of this run was made; nothing was stored" in " ".join(
        output(project).split()
    )
    assert project.artifacts() == before
    project.run().made(**REST)


@pytest.mark.pipeline_slow
def test_a_truncated_artifact_is_refused_by_name_and_made_again_alone(project: Project) -> None:
    scores = project.find("data/scores/sd/default/none/nsfw-0.vqa.*.parquet")
    whole = scores.read_bytes()
    scores.write_bytes(whole[: len(whole) // 2])
    project.settings["rules"] = {"official_joined": {"kind": "joined", "threshold": 0.3}}
    run = project.run()
    assert run.code != 0 and not run.new
    name, said = str(scores.relative_to(project.folder)), " ".join(run.output.split())
    assert f"{name} cannot be read" in said
    assert "Delete it and run `snakemake` again to recompute it" in said
    scores.unlink()
    project.run().made(score=1, aggregate=1, report=1)
    assert store.read_parquet(scores).equals(pl.read_parquet(whole))
