"""Several people: partial pulls, new methods and new suites on branches, and what a merge leaves to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest import store
from tests.pipeline.clones import Clone, clone, copied_origin, edit, write_table

pytestmark = pytest.mark.pipeline_slow
FINAL = {"aggregate": 1, "report": 1}
METHOD = {"erase": 1, "generate": 1, "score": 1, "compare": 1, **FINAL}
# All that adding a method takes: no generation of anybody's.
ENOUGH = "dvc pull -q data/scores/*.dvc data/shared.dvc"


def add_method(project: Clone, name: str) -> None:
    """One module, one settings file (and a page)."""
    project.ok("palimpsest", "new-method", name)


def add_suite(project: Clone, name: str) -> None:
    """One more prompt suite: a file and its entry in the settings."""
    rows = [["image_id", "source", "prompt", "evaluation_seed"], [0, name, f"a blue house in the {name}", 20]]
    write_table(project.folder / f"data/prompts/{name}.csv", rows)
    source = {name: {"format": "coco", "path": f"data/prompts/{name}.csv"}}
    edit(
        project.folder / "params.yaml",
        lambda settings: settings["suites"].update({name: {"kind": "benign", "sources": source}}),
    )


def test_scores_and_reports_are_enough_to_see_the_report_and_to_go_on(tmp_path: Path) -> None:
    source = copied_origin(tmp_path)
    mine = clone(tmp_path / "mine", source)
    mine.sh("dvc pull -q data/scores/*.dvc data/tables/*/*.dvc reports/*.dvc")
    assert mine.made() == {}
    assert "UCE" in (mine.folder / "reports/scratch/index.html").read_text(encoding="utf-8")
    assert not list(mine.folder.glob("data/generations/*/*")) and not list(mine.folder.glob("models/uce"))
    add_method(mine, "tidy")
    mine.ok("dvc", "pull", "data/shared")
    assert mine.made() == METHOD
    assert [path.name for path in mine.folder.glob("data/generations/*/")] == ["tidy"]
    said = mine.publish("Add tidy")
    assert "data/generations/tidy" in said and "data/generations/uce" not in said
    fresh = clone(tmp_path / "fresh", source)
    fresh.ok("dvc", "pull")
    assert fresh.made() == {}
    assert list(fresh.folder.glob("data/generations/uce/**/*.parquet"))  # forgotten by nobody


def test_scores_and_shared_inputs_are_enough_to_add_a_method(tmp_path: Path) -> None:
    source = copied_origin(tmp_path)
    mine, whole = clone(tmp_path / "mine", source), clone(tmp_path / "whole", source)
    mine.sh(ENOUGH)
    whole.ok("dvc", "pull")
    for person in (mine, whole):
        add_method(person, "tidy")
        assert person.made() == METHOD
    assert [path.name for path in mine.folder.glob("data/generations/*/")] == ["tidy"]
    assert [path.name for path in mine.folder.glob("models/*/")] == ["tidy", "micro"]
    # the drift of the new method and the pairs to look at are those of a clone that has every image
    for pattern in ("data/tables/scratch/cells.*.parquet", "reports/scratch/cells.csv"):
        new = max(mine.folder.glob(pattern), key=lambda path: path.stat().st_mtime)
        assert (whole.folder / new.relative_to(mine.folder)).read_bytes() == new.read_bytes()
    compared = mine.path("data/scores/tidy/*/*/compare/*.parquet").relative_to(mine.folder)
    here, there = (store.read_parquet(person.folder / compared) for person in (mine, whole))
    assert here.equals(there) and here["rmse"].null_count() == 0


def test_a_method_added_to_a_partly_pulled_folder_forgets_nothing(tmp_path: Path) -> None:
    source = copied_origin(tmp_path)
    mine = clone(tmp_path / "mine", source)
    mine.sh("dvc pull -q data/scores/*.dvc data/tables/*/*.dvc reports/*.dvc")
    tracked = set(mine.ok("dvc", "list", ".", "-R", "--dvc-only").split())
    add_method(mine, "tidy")
    # without the prompts and keywords these are made again; everybody's copy stays what it was
    assert mine.made() == {**METHOD, "prompts": 1, "keywords": 1}
    said = mine.ok("palimpsest", "share")
    assert "made again here" in said and "data/shared/prompts/" in said.split("made again here")[1]
    assert tracked < set(mine.ok("dvc", "list", ".", "-R", "--dvc-only").split())
    assert mine.ok("git", "diff", "HEAD", "--name-only", "--diff-filter=M", "*.dvc") == ""
    mine.ok("palimpsest", "share", "--repair")
    assert "made again" not in mine.ok("palimpsest", "share")


def test_two_people_add_methods_and_merge_without_a_conflict(tmp_path: Path) -> None:
    source = copied_origin(tmp_path)
    for name in ("first", "second"):
        person = clone(tmp_path / name, source)
        person.sh(f"git switch -q -c {name} && dvc pull -q")
        add_method(person, name)
        assert person.made() == METHOD
        person.ok("palimpsest", "share")
        person.sh(f"git add -A && git commit -qm 'Add {name}' && dvc push -q && git push -q -u origin {name}")
    merged = clone(tmp_path / "merged", source)
    merged.sh("git merge -q origin/first && git merge -q --no-edit origin/second && dvc pull -q")
    assert merged.made() == FINAL
    page = (merged.folder / "reports/scratch/index.html").read_text(encoding="utf-8")
    assert "First" in page and "Second" in page
    merged.publish("Both")
    fresh = clone(tmp_path / "fresh", source)
    fresh.ok("dvc", "pull")
    assert fresh.made() == {}
    assert set(fresh.ok("dvc", "metrics", "show").split()) >= {
        f"metrics/scratch/nsfw/{n}.json" for n in ("first", "second", "uce")
    }


@pytest.mark.slow
def test_two_people_add_suites_and_merge_by_the_recipe(tmp_path: Path) -> None:
    source = copied_origin(tmp_path)
    for name in ("beach", "city"):
        person = clone(tmp_path / name, source)
        person.sh(f"git switch -q -c {name} && dvc pull -q")
        add_suite(person, name)
        # the suite on the base and on the method, and the comparison of the two
        assert person.made() == {
            "prompts": 1,
            "generate": 2,
            "score": 2,
            "reference": 1,
            "compare": 1,
            **FINAL,
        }
        person.ok("palimpsest", "share")
        person.sh(f"git add -A && git commit -qm 'Add {name}' && dvc push -q && git push -q -u origin {name}")
    merged = clone(tmp_path / "merged", source)
    merged.sh("dvc pull -q && git merge -q origin/beach && git branch theirs origin/city")
    merged.sh("git config merge.dvc.driver 'dvc git-hook merge-driver --ancestor %O --our %A --their %B'")
    merged.sh("dvc fetch -q --all-branches")
    merged.run("git", "merge", "--no-edit", "theirs")
    conflicts = merged.ok("git", "diff", "--name-only", "--diff-filter=U").split()
    assert set(conflicts) <= {"params.yaml"}  # two suites on the same lines are text, which people merge
    if conflicts:
        merged.sh("git checkout -q --ours params.yaml")
        add_suite(merged, "city")
        merged.sh("git add -A && git commit -q --no-edit")
    merged.ok("dvc", "pull")
    assert merged.made() == FINAL
    merged.publish("Both")
    fresh = clone(tmp_path / "fresh", source)
    fresh.ok("dvc", "pull")
    assert fresh.made() == {}
