"""Snakemake, the server that forks its jobs and every job are killed at random moments, also inside writes: nothing is lost."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from palimpsest import store
from tests.pipeline.project import FINISHED_JOBS, Project, costs_of, end, new_project, stages, tables

pytestmark = pytest.mark.pipeline_slow
KILLS = 5


def kill_at_random(
    project: Project, process: subprocess.Popen[str], chance: random.Random, inside: bool
) -> bool:
    """Wait for up to three more artifacts, then for the start of the next write or for part of a second; kill everything. False when the
    run ended before."""
    before, more, pause = len(project.artifacts()), chance.randrange(4), chance.random()
    while process.poll() is None and len(project.artifacts()) - before < more:
        time.sleep(0.01)
    if inside:
        while process.poll() is None and not project.parts():
            pass
    else:
        time.sleep(pause)
    if process.poll() is not None:
        return False
    end(process)
    return True


def identities(project: Project) -> dict[str, tuple[int, int]]:
    """Which file each artifact is, and when it was written; every one is read, so that half of one would be seen.

    Costs are written before their table, and again if a kill came between the two; no table is without them.
    """
    found, names = {}, project.artifacts()
    tables = {name for name in names if name.startswith("data/tables/") and "/cells." in name}
    assert {costs_of(table) for table in tables} <= names
    for name in names:
        if "/costs." in name and name not in map(costs_of, tables):
            continue
        path = project.folder / name
        if path.suffix == ".json":
            assert store.read_json(path)["meta"]["key"] in name
        elif path.suffix == ".parquet":
            assert store.read_meta(path)["key"] in name and store.read_parquet(path).height
        elif path.suffix == ".safetensors":
            assert store.read_tensors(path)[1]["key"] in name
        found[name] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


@pytest.mark.first_case
@pytest.mark.parametrize("seed", range(4))
def test_after_five_kills_one_command_completes_and_nothing_runs_twice(
    template: Project, tmp_path: Path, server: dict[str, str], seed: int
) -> None:
    chance = random.Random(seed)
    # half of the projects start a server of their own in each run, which dies with it; the others use one that stays
    project = new_project(tmp_path / "project", server if seed % 2 else None)
    kills = halves = 0
    known: dict[str, tuple[int, int]] = {}
    while kills < KILLS:
        killed = kill_at_random(project, project.begin(), chance, inside=bool(kills % 2))
        said = (project.folder / "output.txt").read_text(encoding="utf-8")
        assert killed, f"the run ended before kill {kills + 1}:\n{said}"
        assert "cannot be locked" not in said and "Busy" not in said
        kills, halves = kills + 1, halves + bool(project.parts())
        now = identities(project)
        assert {name: now.get(name) for name in known} == known
        known = now
    run = project.run()
    assert run.code == 0, run.output
    assert "Removed the lock of a run that was killed" in run.output
    assert run.finished == stages(run.new) and stages(project.artifacts()) == FINISHED_JOBS
    now = identities(project)
    assert {name: now[name] for name in known} == known
    assert not project.parts()
    assert halves, "no kill landed inside a write"
    assert tables(project) == tables(template)
    project.run().made()
