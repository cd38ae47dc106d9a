"""What the scenarios share: one server that forks jobs per test process, and one finished project per test session."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from palimpsest import forkserver
from tests.pipeline.project import FINISHED_JOBS, Project, new_project

# Seconds since 1970 after which no long scenario is begun, where a run has to end in time.
UNTIL = "PALIMPSEST_SCENARIOS_UNTIL"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip long scenarios, and say so, when the time of this run is used up."""
    if item.get_closest_marker("pipeline_slow") and time.time() > float(os.environ.get(UNTIL) or "inf"):
        pytest.skip(f"the time of this run is used up ({UNTIL})")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment by which runs find a server that has loaded the libraries already: many short runs need not start their own."""
    if not hasattr(os, "fork") or Path("/dev/nvidiactl").exists():
        yield {}
        return
    path = tmp_path_factory.mktemp("server") / "sock"
    running = forkserver.launch(path)
    yield {forkserver.SETTING: str(path)}
    running.terminate()
    running.wait()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, server: dict[str, str]) -> Project:
    """A project that has been run to its end, built once for all test processes; scenarios work on copies."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, settings = shared / "finished", shared / "finished.json"
    with open(shared / "finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not settings.exists():
            made = new_project(folder, server)
            made.run().made(**FINISHED_JOBS)
            settings.write_text(json.dumps(made.settings), encoding="utf-8")
    return Project.at(folder, json.loads(settings.read_text(encoding="utf-8")))


@pytest.fixture
def project(template: Project, tmp_path: Path, server: dict[str, str]) -> Project:
    """A copy of the finished project."""
    made = template.copy(tmp_path / "project")
    made.environment |= server
    return made


@pytest.fixture
def scratch(tmp_path: Path, server: dict[str, str]) -> Any:
    """Makes empty projects with overlays."""

    def make(**overlay: Any) -> Project:
        folder = tmp_path / "project"
        folder.mkdir()
        made = Project(folder, **overlay)
        made.environment |= server
        return made

    return make
