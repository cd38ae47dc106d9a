from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from palimpsest import params, tracked
from palimpsest.annotate.board import Place
from palimpsest.annotate.session import Session
from palimpsest.labelled import label_files
from tests.cli.conftest import ROOT, Run

STORE = Path("data/annotation/micro")


@pytest.fixture
def labelled(project: Path) -> Session:
    """A store of the default experiment in which two raters labelled four images, one of them otherwise."""
    themes = {name: theme.detailed for name, theme in params.load("params.yaml").themes.items()}
    session = Session(STORE, themes)
    session.add((np.full((4, 4, 3), n, np.uint8), Place("k", "p", f"i{n}")) for n in range(4))
    for number, image in enumerate(sorted(session.here)):
        answers = dict.fromkeys(themes, "no") | {"glitch": "yes" if number > 1 else "no"}
        session.answer("ann", image, answers)
        session.answer("bob", image, answers if number else {**answers, "uncased": "yes"})
    return session


def test_status_while_the_store_is_open(labelled: Session, run: Run) -> None:
    result = run("annotate", "status")
    assert result.exit_code == 0, result.output
    assert "ann: 4 of 4 images, 0 skipped" in result.output
    assert "glitch: fleiss kappa 1.00" in result.output
    assert "1 image(s) with opposite answers, 1 not decided" in result.output


def test_votes_go_to_where_the_plan_finds_them_and_come_back(labelled: Session, run: Run) -> None:
    result = run("annotate", "export")
    assert result.exit_code == 0, result.output
    assert "24 vote(s) written to data/labels/micro/votes.parquet" in result.output
    assert list(label_files(Path("."), "micro")) == ["data/labels/micro/votes.parquet"]
    again = run("annotate", "import", "data/labels/micro/votes.parquet", "--store", "elsewhere")
    assert "24 new vote(s), 0 known already" in again.output
    labelled.close()
    assert (
        "0 new vote(s), 24 known already"
        in run("annotate", "import", "data/labels/micro/votes.parquet").output
    )


def test_what_cannot_be_done_is_said(labelled: Session, run: Run) -> None:
    def refused(*arguments: str) -> str:
        result = run("annotate", *arguments)
        assert result.exit_code == 1
        return result.output

    assert "is open in another process" in refused()
    labelled.close()
    assert "one of them" in refused("--folder", "x", "--method", "sd")
    assert "x is no folder" in refused("--folder", "x")
    assert "run `snakemake`" in refused("--suite", "coco")
    assert "the ending decides" in refused("export", "votes.txt")
    assert "there is no store in nowhere" in refused("status", "--store", "nowhere")
    assert "is not here" in refused("import", "votes.csv")
    Path("bad.csv").write_text("image,theme,rater,answer\nx,glitch,ann,yes\n")
    assert "row 1: image 'x' is no digest" in refused("import", "bad.csv")


@pytest.fixture
def shared(labelled: Session, project: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """The store in a git repository with the project's own rules of what git and DVC keep."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(project / ".dvc/tmp/site"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore", "data/.gitignore"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    git("init", "--quiet")
    git("add", ".")
    git(
        "-c", "user.name=ann", "-c", "user.email=ann@example.org", "commit", "--quiet", "--message", "Project"
    )
    return labelled


def git(*arguments: str) -> list[str]:
    """The lines that a git command prints."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.splitlines()


def test_exported_votes_are_tracked_by_dvc_and_new_ones_change_what_is_tracked(
    shared: Session, run: Run
) -> None:
    def exported() -> str:
        result = run("annotate", "export")
        assert result.exit_code == 0, result.output
        assert "git add data/labels/micro/votes.parquet.dvc" in result.output
        assert not json.loads(tracked.run(Path("."), "status", "--json"))  # what is tracked is what is there
        return Path("data/labels/micro/votes.parquet.dvc").read_text(encoding="utf-8")

    first = exported()
    # git is to keep this file and no other: neither the votes nor the store
    assert git("status", "--porcelain") == ["A  data/labels/micro/votes.parquet.dvc"]
    shared.answer("eve", sorted(shared.here)[0], {"uncased": "yes"}, "adjudicator")
    second = exported()
    assert second != first
    assert hashlib.md5(Path("data/labels/micro/votes.parquet").read_bytes()).hexdigest() in second
    shared.close()
