"""The commands of the pages about sharing and about adding a method, typed in the order in which they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.pipeline.clones import ROOT, Clone, clone, copied_origin, origin

pytestmark = pytest.mark.pipeline_slow
BLOCK = re.compile(r"<!-- run -->\n```sh\n(.*?)```", flags=re.DOTALL)


def typed(page: str, project: Clone, address: Path) -> str:
    """Run every marked block of a page in one shell that stops at the first failure; what was printed."""
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert len(blocks) > 3
    project.environment["ADDRESS"] = str(address)
    # the code of the folder one has moved to, as in a clone with an environment of its own
    script = re.sub(r"^cd .*$", r'\g<0>\nexport PYTHONPATH="$PWD/src"', "\n".join(blocks), flags=re.MULTILINE)
    return project.sh(script)


@pytest.mark.slow
def test_share_results(tmp_path: Path) -> None:
    source = copied_origin(tmp_path / "source")
    address = source / "project.git"
    mine = Clone(tmp_path / "mine")
    # as it is before anything was shared: results made, no remote, no `.dvc` file
    shutil.copytree(origin() / "work", mine.folder, symlinks=True)
    mine.sh("git reset -q --hard HEAD~2 && rm -rf .dvc/cache .dvc/config.local metrics plots")
    mine.sh(
        f"git remote set-url origin {address} && git push -q --force origin main && git branch -q -u origin/main"
    )
    assert not list(mine.folder.glob("data/**/*.dvc")) and mine.made() == {}
    said = typed("share.md", mine, address)
    assert said.count("Nothing to be done") >= 4, said
    assert "found whole" in said and "dvc push" in said
    assert list((tmp_path / "results").rglob("*.dir"))
    reader = tmp_path / "reader"
    assert (reader / "dvc_plots/index.html").is_file()


def test_add_a_method(tmp_path: Path) -> None:
    source = copied_origin(tmp_path)
    mine = clone(tmp_path / "mine", source)
    mine.ok("dvc", "pull")
    before = mine.artifacts()
    typed("add-a-method.md", mine, source / "project.git")
    new = set(mine.artifacts()) - set(before)
    assert {Path(name).parts[1] for name in new if name.startswith("models/")} == {"my_method"}
    own = ("my_method", "/cells.", "/costs.", "index.html")
    assert [name for name in new if not any(part in name for part in own)] == []
    fresh = clone(tmp_path / "fresh", source)
    fresh.sh("git switch -q my_method && dvc pull -q")
    assert fresh.made() == {}
