"""A disk that fills up during a run: a clear error, earlier artifacts whole, and a later run with space completes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from palimpsest import store
from tests.pipeline.project import FINISHED_JOBS, Project, new_project, stages, tables

pytestmark = pytest.mark.pipeline_slow
MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here (root is needed): {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def leave(place: Path, free: int) -> Path:
    """Fill the disk until `free` bytes are left; returns the file that fills it."""
    ballast = place / "ballast"
    ballast.unlink(missing_ok=True)
    with open(ballast, "wb") as handle:
        handle.truncate(0)
        while (more := shutil.disk_usage(place).free - free) > 0:
            handle.write(bytes(min(more, MIB)))
            handle.flush()
    return ballast


def check_whole(project: Project) -> None:
    for name in project.artifacts():
        path = project.folder / name
        if path.suffix == ".parquet":
            assert store.read_parquet(path).height
        elif path.suffix == ".json":
            store.read_json(path)
        elif path.suffix == ".safetensors":
            store.read_tensors(path)


# Room for the prompts and some images; for all cells but the report.
@pytest.mark.parametrize("free", [250_000, 600_000])
def test_a_full_disk_is_named_and_a_later_run_with_space_completes(
    template: Project, small_disk: Path, server: dict[str, str], free: int
) -> None:
    project = new_project(small_disk / "project", server)
    assert project.run("-n").code == 0  # its caches of code are written before the disk is full
    ballast = leave(small_disk, free)
    run = project.run()
    assert run.code != 0
    said = " ".join(run.output.split())
    assert "No space left on device" in said
    assert "The disk is full:" in said and "of 64 MiB are free" in said
    check_whole(project)
    assert not project.parts()
    before = project.artifacts()
    assert len(before) < sum(FINISHED_JOBS.values())
    ballast.unlink()
    later = project.run()
    assert later.code == 0, later.output
    assert later.finished == stages(later.new)
    assert stages(project.artifacts()) == FINISHED_JOBS and before < project.artifacts()
    assert tables(project) == tables(template)
