"""Which files of labels count, and that nothing but their content does."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest

from palimpsest import params
from palimpsest.labelled import LABELS, label_files
from palimpsest.plan.build import Plan, build
from tests.cli.conftest import ROOT


def test_content_counts_and_neither_time_nor_tracking(tmp_path: Path) -> None:
    folder = tmp_path / LABELS / "micro"
    assert label_files(tmp_path, "micro") == {}
    folder.mkdir(parents=True)
    (folder / "a.parquet").write_bytes(b"one")
    (folder / "note.txt").write_bytes(b"x")
    found = label_files(tmp_path, "micro")
    assert found == {"data/labels/micro/a.parquet": hashlib.md5(b"one").hexdigest()}
    os.utime(folder / "a.parquet", (0, 0))
    # an older state is what DVC was told: what is here counts
    (folder / "a.parquet.dvc").write_text(f"outs:\n- md5: {'0' * 32}\n  path: a.parquet\n")
    assert label_files(tmp_path, "micro") == found
    (folder / "a.parquet.dvc").write_text(
        f"outs:\n- md5: {hashlib.md5(b'one').hexdigest()}\n  path: a.parquet\n"
    )
    (folder / "a.parquet").unlink()
    assert label_files(tmp_path, "micro") == found
    assert label_files(tmp_path, "other") == {}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with everything that a plan looks at, and no labels."""
    for name in ("methods", "models", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    for name in ("micro", "reference"):
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)
    return tmp_path


def changed(before: Plan, after: Plan) -> Counter[str]:
    return Counter(cell.step for path, cell in after.cells.items() if path not in before.cells)


def test_labels_enter_the_table_of_classifiers_and_nothing_else(project: Path) -> None:
    settings = params.load(ROOT / "params.yaml", ROOT / "experiments/tiny.yaml")
    none = build(settings, project)
    folder = project / LABELS / "tiny"
    folder.mkdir(parents=True)
    (folder / "votes.parquet").write_bytes(b"one")
    one = build(settings, project)
    (folder / "more.parquet").write_bytes(b"two")
    two = build(settings, project)
    assert changed(none, one) == changed(one, two) == {"classifiers": 1, "report": 1}
    [table] = [cell for cell in two.cells.values() if cell.step == "classifiers"]
    assert set(table.raw) == {"data/labels/tiny/more.parquet", "data/labels/tiny/votes.parquet"}
    assert {cell.step for cell in table.inputs} == {"renders", "score"}


def test_without_labels_of_people_no_score_is_read(project: Path) -> None:
    settings = params.load(ROOT / "params.yaml", ROOT / "experiments/tiny.yaml")
    [table] = [cell for cell in build(settings, project).cells.values() if cell.step == "classifiers"]
    # the detector of parts is read by no rule, so nothing it says could be right or wrong
    assert "parts" in settings.detectors
    assert [(cell.step, cell.place) for cell in table.inputs] == [("renders", "vqa")]


def test_where_nothing_is_labelled_there_is_no_table(project: Path) -> None:
    paper = params.load(ROOT / "params.yaml", ROOT / "experiments/paper.yaml")
    assert not {"renders", "classifiers"} & {cell.step for cell in build(paper, project).cells.values()}
