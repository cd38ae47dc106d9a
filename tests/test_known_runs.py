"""Remembered runs are those that would be worked out, and nothing that decides them is forgotten."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from palimpsest import closure, params
from palimpsest.plan import known_runs as remembering
from palimpsest.plan.known_runs import known_runs
from palimpsest.runs import Run, runs_of

ROOT = Path(__file__).parents[1]
METHODS = ("sd", "uce", "sld", "mace")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project of four methods."""
    (tmp_path / "methods").mkdir()
    for name in METHODS:
        shutil.copy(ROOT / f"methods/{name}.yaml", tmp_path / "methods")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)


def settings(**changes: Any) -> params.Params:
    found = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    return params.parse({**found, "methods": "all", "overrides": {}, **changes})


def asked(chosen: params.Params, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Run], bool]:
    """The runs, and whether they had to be worked out."""
    worked: list[int] = []

    def work(*arguments: Any) -> Any:
        worked.append(1)
        return runs_of(*arguments)

    monkeypatch.setattr(remembering, "runs_of", work)
    return known_runs(chosen, Path("methods")), bool(worked)


def exactly(runs: list[Run]) -> str:
    """Every field with its type: 7 and 7.0 are one number and two keys."""
    return repr(
        [[(field.name, getattr(run, field.name)) for field in dataclasses.fields(run)] for run in runs]
    )


def edit(name: str, change: dict[str, Any]) -> None:
    path = Path(f"methods/{name}.yaml")
    file = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**file, **change}, sort_keys=False), encoding="utf-8")


def test_remembered_runs_are_the_ones_that_were_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    file = yaml.safe_load(Path("methods/uce.yaml").read_text(encoding="utf-8"))
    first = next(iter(file["presets"]))
    edit("uce", {"samplers": {first: {"guidance": 7, "steps": 3}}, "run": [first]})
    chosen = settings()
    for expected in (True, False, False):
        runs, worked = asked(chosen, monkeypatch)
        assert worked is expected
        assert exactly(runs) == exactly(list(runs_of(chosen, Path("methods"))))
    assert {run.method for run in runs} == set(METHODS) and runs[0].method == "sd"
    assert [run.sampler.steps for run in runs if run.method == "uce"] == [3]


@pytest.mark.parametrize("changed", ["settings", "file", "new file", "gone file", "code", "version"])
def test_whatever_decides_them_is_seen(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings()
    before, _ = asked(chosen, monkeypatch)
    assert not asked(chosen, monkeypatch)[1]
    if changed == "settings":
        chosen = settings(overrides={"uce": {"strength": 0.25}})
    elif changed == "file":
        edit("uce", {"title": "Another title"})
    elif changed == "new file":
        shutil.copy("methods/uce.yaml", "methods/uce_again.yaml")
    elif changed == "gone file":
        Path("methods/mace.yaml").unlink()
    elif changed == "code":
        monkeypatch.setattr(closure, "tree", lambda: "another state")
    else:
        monkeypatch.setattr(remembering.pydantic, "VERSION", "0.0")
    runs, worked = asked(chosen, monkeypatch)
    assert worked and exactly(runs) == exactly(list(runs_of(chosen, Path("methods"))))
    assert (exactly(runs) == exactly(before)) is (changed in ("code", "version"))


@pytest.mark.parametrize("damage", ["", "{", "[1]", "cut short", "other rows", "no rows"])
def test_a_damaged_memory_is_made_anew(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings()
    before, _ = asked(chosen, monkeypatch)
    ((mark, text),) = json.loads(remembering.MEMORY.read_text(encoding="utf-8")).items()
    broken = {"cut short": text[:-9], "other rows": '[{"method": "uce"}]', "no rows": "[]"}
    written = json.dumps({mark: broken[damage]}) if damage in broken else damage
    remembering.MEMORY.write_text(written, encoding="utf-8")
    runs, worked = asked(chosen, monkeypatch)
    assert worked and exactly(runs) == exactly(before)
    assert json.loads(remembering.MEMORY.read_text(encoding="utf-8")) == {mark: text}


def test_errors_are_found_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = settings(overrides={"uce": {"strenth": 1.0}})
    for _ in range(2):
        with pytest.raises(params.BadSettings, match="strenth"):
            asked(wrong, monkeypatch)
    assert not remembering.MEMORY.exists()


def test_methods_of_a_third_party_are_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(*arguments: Any) -> list[Run]:
        return [dataclasses.replace(run, module="elsewhere.method") for run in runs_of(*arguments)]

    monkeypatch.setattr(remembering, "runs_of", theirs)
    assert {run.module for run in known_runs(settings(), Path("methods"))} == {"elsewhere.method"}
    assert not remembering.MEMORY.exists()


def test_a_few_experiments_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(remembering.MOST + 2):
        assert asked(settings(seed=seed), monkeypatch)[1]
    assert len(json.loads(remembering.MEMORY.read_text(encoding="utf-8"))) == remembering.MOST
    assert not asked(settings(seed=remembering.MOST + 1), monkeypatch)[1]
