from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from palimpsest import runlock, store

HOLD = "from pathlib import Path; from palimpsest import runlock; import sys; print(runlock.take(Path('.')), flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def _released():
    yield
    runlock.release()


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, "--cores", "2"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().strip() == "[]"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def left(folder):
    """What Snakemake leaves when it is killed."""
    (folder / runlock.SNAKEMAKE).mkdir(parents=True)
    (folder / runlock.SNAKEMAKE / "0.input.lock").write_text("data/x.parquet\n")


def test_the_second_is_told_who_runs_since_when_and_by_which_command(tmp_path, other):
    left(tmp_path)
    with pytest.raises(
        runlock.Busy, match=rf"process {other.pid} on {os.uname().nodename} \(`-c --cores 2`\), since 20\d\d-"
    ):
        runlock.take(tmp_path)
    assert (tmp_path / runlock.SNAKEMAKE / "0.input.lock").exists()
    assert f"process {other.pid}" in runlock.holder(tmp_path)


def test_a_killed_run_leaves_nothing_that_stops_the_next(tmp_path, other):
    left(tmp_path)
    other.kill()
    other.wait()
    assert runlock.holder(tmp_path) is None
    (cleared,) = runlock.take(tmp_path)
    assert f"process {other.pid}" in cleared and not runlock.left_behind(tmp_path)
    assert json.loads((tmp_path / runlock.FILE).read_text())["pid"] == os.getpid()


def test_after_a_run_that_ended_well_nobody_is_named(tmp_path, other):
    other.stdin.close()
    other.wait()
    assert runlock.take(tmp_path) == []


def test_the_lock_of_another_machine_is_left_alone(tmp_path):
    left(tmp_path)
    (tmp_path / ".palimpsest").mkdir()
    holder = runlock.Holder(7, "node17", "2026-01-01T00:00:00+00:00", "snakemake")
    (tmp_path / runlock.FILE).write_text(json.dumps(holder.__dict__))
    with pytest.raises(runlock.Busy, match="on node17 .*rm -r .snakemake/locks"):
        runlock.take(tmp_path)
    assert runlock.left_behind(tmp_path) and runlock.holder(tmp_path) is None


def test_only_files_whose_writer_is_gone_from_this_machine_are_cleared(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = tmp_path / "data/scores"
    folder.mkdir(parents=True)
    names = {
        f"a.parquet.{store.node()}-{gone.pid}.part": False,
        f"a.parquet.{gone.pid}.part": False,
        f"a.parquet.{store.node()}-{os.getpid()}.part": True,
        f"a.parquet.othernode-{gone.pid}.part": True,
        "checkpoint.safetensors.part": True,
        "a.parquet": True,
    }
    for name in names:
        (folder / name).write_bytes(b"x")
    (tmp_path / f"reports/.page.{gone.pid}.part/figures").mkdir(parents=True)
    assert len(runlock.clear_leftovers(tmp_path)) == 3
    assert {path.name for path in folder.iterdir()} == {name for name, kept in names.items() if kept}
    assert not list((tmp_path / "reports").iterdir())
