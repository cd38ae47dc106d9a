from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from palimpsest import findings, runlock, store
from palimpsest.cli import doctor
from palimpsest.job import failure_path
from tests.cli.conftest import Run


def test_locked_versions_follow_the_markers_of_this_python(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text(
        "# a comment\n"
        "alpha==1.0 ; python_version < '3' \\\n    --hash=sha256:00\n"
        "alpha==2.0 ; python_version >= '3' \\\n    --hash=sha256:00\n"
        "Beta-Two==3.1.post1 \\\n    --hash=sha256:00\n"
    )
    assert doctor.locked(lock) == {"alpha": "2.0", "beta-two": "3.1.post1"}


def test_the_lock_holds_every_library_that_is_checked(project: Path) -> None:
    wanted = doctor.locked(project / "requirements.txt")
    assert set(doctor.environment.LIBRARIES) | set(doctor.RUNNERS) <= set(wanted)


def test_another_version_than_locked_is_a_warning(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text("numpy==0.0.1\n")
    (check,) = doctor.libraries(lock)
    assert check.level == findings.WARN
    assert f"numpy {metadata.version('numpy')} (locked: 0.0.1)" in check.found


def test_missing_prompts_and_weights_fail_with_a_remedy(run: Run) -> None:
    result = run("doctor")
    assert result.exit_code == 1
    assert "FAIL  weights: model: there is no models/micro/stable-diffusion" in result.output
    assert "FAIL  prompts: suites.nsfw.sources.i2p" in result.output
    assert "would stop a run" in result.output


def test_bad_settings_are_told_in_full(run: Run, project: Path) -> None:
    (project / "bad.yaml").write_text("seed: -1\njudge: nobody\n")
    result = run("doctor", "--config", "bad.yaml")
    assert result.exit_code == 1
    assert "seed" in result.output
    assert "FAIL  settings" in result.output


def test_half_written_files_are_told_apart_by_their_writer(project: Path) -> None:
    folder = project / "data" / "scores"
    folder.mkdir(parents=True)
    alive = folder / f"a.parquet.{os.getpid()}.part"
    alive.write_bytes(b"x")
    (check,) = doctor.leftovers(project)
    assert check.level == findings.OK
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = folder / f"b.parquet.{gone.pid}.part"
    dead.write_bytes(b"x")
    (check,) = doctor.leftovers(project)
    assert check.level == findings.WARN
    assert "b.parquet" in check.found
    assert "a.parquet" not in check.found
    assert check.remedy == "the next run removes them"
    assert runlock.clear_leftovers(project) == [dead]
    assert alive.exists() and not dead.exists()


def test_a_lock_without_a_run_is_left_to_the_next_run(project: Path) -> None:
    (free,) = doctor.lock(project)
    assert free.level == findings.OK
    held = project / ".snakemake" / "locks" / "0.output.lock"
    held.parent.mkdir(parents=True)
    held.write_text("reports")
    (check,) = doctor.lock(project)
    assert (check.level, check.remedy) == (findings.WARN, "the next run removes it")
    assert len(runlock.take(project)) == 1
    (check,) = doctor.lock(project)
    runlock.release()
    assert check.level == findings.FAIL and f"process {os.getpid()} on" in check.found
    (check,) = doctor.lock(project)
    assert check.level == findings.OK


def test_failed_cells_are_listed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"step": "erase", "where": {"method": "uce", "preset": "p"}, "reason": "MemoryError: 9 GiB"}
    store.write_json(record, failure_path("0" * 16))
    (check,) = doctor.failures(project)
    assert "erase uce/p: MemoryError: 9 GiB" in check.found


def test_half_precision_on_a_processor_without_it_is_a_warning(tmp_path: Path) -> None:
    half = doctor.params.load("params.yaml", "experiments/paper.yaml")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu avx2\n")
    (check,) = doctor.arithmetic(half, cpuinfo)
    assert check.level == findings.WARN
    assert "training_images.sampler.dtype: float16, detectors.vqa.dtype: bfloat16" in check.found
    cpuinfo.write_text("flags : fpu avx2 avx512_bf16\n")
    assert not list(doctor.arithmetic(half, cpuinfo))
    cpuinfo.write_text("flags : fpu avx2\n")
    assert not list(doctor.arithmetic(doctor.params.load("params.yaml"), cpuinfo))
