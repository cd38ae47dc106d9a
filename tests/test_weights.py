"""What is missing before a run is said in one line each, with what to do about it."""

from __future__ import annotations

import pytest

from palimpsest import params
from palimpsest.runs import NamedFile, Run
from palimpsest.weights import check_weights, present, snapshot


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("model", "judge"):
        (tmp_path / name).mkdir()
    return tmp_path


def settings():
    base = params.read_yaml("params.yaml")
    detectors = {"vqa": {"kind": "vqa", "path": "judge"}, "parts": None}
    return params.parse(params.merge(base, {"model": {"path": "model"}, "detectors": detectors}))


def run(method, *files):
    sampler = settings().sampler
    return Run(method, "default", "m", {}, sampler, False, (), files=files)


def named(setting, path, revision=None):
    return NamedFile(setting, path, revision, path)


def downloaded(cache, name, commit, branch=None):
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "snapshots" / commit / "config.json").write_text("{}")
    if branch:
        (place / "refs").mkdir()
        (place / "refs" / branch).write_text(commit)


def test_nothing_is_said_when_everything_is_there(project):
    (project / "weights").mkdir()
    assert check_weights(settings(), project, [run("cleaned", named("checkpoint", "weights"))]) == []


def test_a_missing_hub_id_of_a_method_names_the_command_the_setting_and_the_way_without(project):
    [line] = check_weights(settings(), project, [run("cleaned", named("checkpoint", "some/mirror", "main"))])
    for part in (
        "methods.cleaned: the weights 'some/mirror' are not in the hub cache",
        "hf download some/mirror --revision main",
        "set `overrides.cleaned.checkpoint` to a local folder or a mirror",
        "leave cleaned out of `methods`",
    ):
        assert part in line


def test_a_missing_file_of_a_method_names_the_place(project):
    [line] = check_weights(settings(), project, [run("dalle", named("manifest", "data/external/d/m.csv"))])
    assert "methods.dalle: there is no data/external/d/m.csv. Put it there" in line
    assert "`overrides.dalle.manifest`" in line


def test_what_two_presets_name_alike_is_said_once(project):
    runs = [run("cleaned", named("checkpoint", "some/mirror"))] * 2
    assert len(check_weights(settings(), project, runs)) == 1


def test_a_branch_leads_to_the_snapshot_of_its_commit(project):
    downloaded(project / "cache", "some/mirror", "abc", branch="main")
    assert snapshot("some/mirror", "main").name == "abc"
    assert present("some/mirror", "main", project) and present("some/mirror", None, project)
    assert present("some/mirror", "abc", project)
    assert not present("some/mirror", "other", project)
