"""Remembered stamps are those that would be computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from palimpsest import closure, stamps

ROOTS = ("palimpsest.steps.keywords", "palimpsest.job")


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stamps.stamp.cache_clear()


def again() -> dict[str, object]:
    """The stamp as another process would find it."""
    stamps.stamp.cache_clear()
    stamps._known.clear()
    return stamps.stamp(ROOTS)


def remembered() -> dict[str, str]:
    return json.loads(stamps.MEMORY.read_text(encoding="utf-8"))


def test_first_and_remembered_stamps_are_the_computed_one() -> None:
    assert stamps.stamp(ROOTS) == closure.stamp(ROOTS)
    assert list(remembered().values()) == [closure.digest(ROOTS)]
    assert again() == closure.stamp(ROOTS)


def test_what_is_remembered_of_other_sources_does_not_count() -> None:
    stamps.stamp(ROOTS)
    ((mark, _),) = remembered().items()
    sources = str(closure.stamp(ROOTS)["sources"])
    assert sources in mark and mark.startswith(" ".join(ROOTS))
    stamps.MEMORY.write_text(json.dumps({mark.replace(sources, "0" * 32): "f" * 32}), encoding="utf-8")
    assert again() == closure.stamp(ROOTS)


def test_modules_are_remembered_for_one_state_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stamps.modules(ROOTS) == closure.modules(ROOTS)
    ((mark, names),) = json.loads(stamps.IMPORTS.read_text(encoding="utf-8")).items()
    assert closure.tree() in mark and tuple(names.split()) == closure.modules(ROOTS)
    stamps.IMPORTS.write_text(json.dumps({mark: "palimpsest palimpsest.job"}), encoding="utf-8")
    stamps._known.clear()
    assert stamps.modules(ROOTS) == ("palimpsest", "palimpsest.job"), "read, not worked out"
    monkeypatch.setattr(closure, "tree", lambda: "another state")
    assert stamps.modules(ROOTS) == closure.modules(ROOTS)


def test_modules_of_a_third_party_are_worked_out_each_time() -> None:
    roots = ("palimpsest.job", "json.tool")
    assert stamps.modules(roots) == closure.modules(roots)
    assert not stamps.IMPORTS.exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", '"text"'])
def test_a_damaged_memory_is_made_anew(text: str) -> None:
    stamps.MEMORY.parent.mkdir()
    stamps.MEMORY.write_text(text)
    assert again() == closure.stamp(ROOTS)
    assert list(remembered().values()) == [closure.digest(ROOTS)]


def test_without_a_place_to_write_it_works_as_well(tmp_path: Path) -> None:
    Path(".palimpsest").write_text("a file in the way")
    assert again() == closure.stamp(ROOTS)


def test_the_memory_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "MOST", 3)
    for step in ("prompts", "keywords", "erase", "score", "generate"):
        stamps.stamp((f"palimpsest.steps.{step}", "palimpsest.job"))
    assert len(remembered()) == 3
