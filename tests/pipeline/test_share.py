"""Sharing in scratch clones: what arrives, what is refused and how it is repaired."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.clones import Clone, clone, flip, origin, set_threshold

pytestmark = pytest.mark.pipeline_slow
LINKS = ["copy", "hardlink", "symlink"]
# What a run does first, and then it stays.
HOLD = "from pathlib import Path; from palimpsest import runlock; runlock.take(Path('.')); print('held', flush=True); input()"
FINAL = {"aggregate": 1, "report": 1}


def pulled(folder: Path, links: str = "copy", *targets: str) -> Clone:
    """A clone with results in it."""
    new = clone(folder)
    new.ok("dvc", "config", "--local", "cache.type", links)
    new.ok("dvc", "pull", *targets)
    return new


@pytest.mark.parametrize("links", LINKS)
def test_a_fresh_clone_has_nothing_to_do_and_the_same_report(tmp_path: Path, links: str) -> None:
    mine = pulled(tmp_path / "mine", links)
    assert mine.made() == {}
    page = (mine.folder / "reports/scratch/index.html").read_bytes()
    assert page == (origin() / "work/reports/scratch/index.html").read_bytes() and b"UCE" in page
    said = mine.ok("palimpsest", "share")
    assert "found whole" in said and "Nothing is new" in said
    assert mine.ok("dvc", "data", "status").strip() == "No changes."
    assert mine.ok("git", "status", "--porcelain") == ""


@pytest.mark.parametrize("links", LINKS)
def test_one_changed_byte_is_named_and_refused_and_repaired_by_one_command(
    tmp_path: Path, links: str
) -> None:
    mine = pulled(tmp_path / "mine", links)
    victims = [
        mine.path("data/generations/uce/**/nsfw-0.*.parquet"),
        mine.path("models/uce/**/*.safetensors"),
        mine.path("data/shared/keywords/*.json"),
        mine.path("reports/scratch-*/index.html"),
    ]
    whole = {path: path.read_bytes() for path in victims}
    for path in victims:
        flip(path, at=len(whole[path]) // 2)
    said = mine.run("palimpsest", "share")
    assert said.returncode == 1 and "4 artifact(s)" in said.stdout
    for path in victims:
        assert f"{path.relative_to(mine.folder)}: " in said.stdout
    assert "palimpsest share --repair" in said.stdout
    mine.ok("palimpsest", "share", "--repair")
    assert {path: path.read_bytes() for path in victims} == whole
    assert mine.made() == {} and "Nothing is new" in mine.ok("palimpsest", "share")


def test_what_was_never_shared_is_checked_as_well_and_made_again(tmp_path: Path) -> None:
    mine = pulled(tmp_path / "mine")
    set_threshold(mine, 0.4)
    assert mine.made() == FINAL
    table = max(mine.folder.glob("data/tables/scratch/cells.*.parquet"), key=lambda p: p.stat().st_mtime)
    page = mine.folder / "reports/scratch/tables/cells.csv"
    whole = table.read_bytes()
    flip(table), flip(page)
    said = mine.run("palimpsest", "share", "--dry-run")
    assert said.returncode == 1 and table.name in said.stdout and "tables/cells.csv" in said.stdout
    assert "deleted" in mine.ok("palimpsest", "share", "--repair")
    costs = table.with_name(table.name.replace("cells.", "costs."))
    assert not table.exists() and not costs.exists()
    assert mine.made() == FINAL and table.read_bytes() == whole
    costs.rename(costs.with_suffix(".away"))
    said = mine.run("palimpsest", "share", "--dry-run")
    assert said.returncode == 1 and f"{costs.name}, which is written before it, is gone" in said.stdout
    costs.with_suffix(".away").rename(costs)
    said = mine.ok("palimpsest", "share")
    assert f"data/tables/scratch/{costs.name}" in said
    assert f"data/tables/scratch/{table.name}" in said and "git commit" in said and "dvc push" in said


def test_a_truncated_file_is_refused_at_reading_with_path_and_remedy(tmp_path: Path) -> None:
    mine = pulled(tmp_path / "mine")
    score = mine.path("data/scores/uce/**/nsfw-0.vqa.*.parquet")
    score.write_bytes(score.read_bytes()[:-20])
    set_threshold(mine, 0.4)
    said = mine.run("snakemake")
    assert said.returncode != 0
    flat = " ".join(said.stdout.split())
    assert f"{score.relative_to(mine.folder)} cannot be read" in flat and "dvc checkout --force" in flat
    assert "cannot be read" in mine.run("palimpsest", "share").stdout
    mine.ok("palimpsest", "share", "--repair")
    assert mine.made() == FINAL


def test_nothing_is_shared_while_a_run_is_under_way(tmp_path: Path) -> None:
    mine = pulled(tmp_path / "mine")
    holder = [sys.executable, "-c", HOLD]
    with subprocess.Popen(
        holder,
        cwd=mine.folder,
        env=mine.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None and run.stdout.readline() == "held\n"
        said = mine.run("palimpsest", "share")
        run.kill()
    assert said.returncode == 1 and f"process {run.pid}" in said.stdout
    locks = mine.folder / ".snakemake/locks"
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "0.input.lock").write_text("x")
    said = mine.run("palimpsest", "share")
    assert said.returncode == 1 and "was killed" in said.stdout
    assert mine.made() == {}  # which clears the lock away
    model = mine.path("models/uce/**/*.safetensors")
    with subprocess.Popen(["sleep", "60"]) as gone:
        gone.kill()
    model.with_name(f"{model.name}.{gone.pid}.part").write_bytes(b"half")
    assert "found whole" in mine.ok("palimpsest", "share")
    model.with_name(f"{model.name}.{os.getpid()}.part").write_bytes(b"half")
    said = mine.run("palimpsest", "share")
    assert said.returncode == 1 and "being written" in said.stdout


def test_only_what_the_settings_name_is_shared_and_pruning_spares_every_experiment(tmp_path: Path) -> None:
    mine = pulled(tmp_path / "mine")
    settings = (mine.folder / "params.yaml").read_text()
    overlay = mine.folder / "experiments/mine.yaml"
    overlay.parent.mkdir()
    overlay.write_text("experiment: mine\n")
    assert mine.made("--configfile", str(overlay)) == FINAL
    set_threshold(mine, 0.4)
    assert mine.made() == FINAL
    (mine.folder / "params.yaml").write_text(settings)
    before = mine.artifacts()
    old = {name for name in before if "scratch" in name and not is_tracked(mine, name)}
    assert len(old) == 3  # table, costs and page
    said = mine.ok("palimpsest", "share", "--dry-run")
    assert (
        "left out" in said
        and mine.artifacts() == before
        and mine.ok("git", "status", "--porcelain", "*.dvc") == ""
    )
    mine.ok("palimpsest", "share")
    assert mine.artifacts() == before
    assert not list(
        mine.folder.glob("reports/mine-*.dvc")
    )  # an experiment of its own, shared when it is named
    mine.ok("palimpsest", "share", "--prune")
    assert set(before) - set(mine.artifacts()) == old
    mine.ok("palimpsest", "share", "--config", "experiments/mine.yaml")
    assert list(mine.folder.glob("reports/mine-*.dvc")) and list(mine.folder.glob("data/tables/mine/*.dvc"))
    assert mine.made() == {} and mine.made("--configfile", str(overlay)) == {}


def is_tracked(project: Clone, name: str) -> bool:
    """Whether DVC knows an artifact."""
    return name in project.ok("dvc", "list", ".", "-R", "--dvc-only")
