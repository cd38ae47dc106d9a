"""The runs of an experiment, remembered by everything that decides them: to work them out, every method and its model of settings is
imported, which takes as long as the plan of thousands of cells."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pydantic

from palimpsest import closure
from palimpsest.memory import keep, recall
from palimpsest.params import Params
from palimpsest.runs import NamedFile, Run, runs_of

MEMORY = Path(".palimpsest/runs.json")
# A few experiments, each of them some hundred kB at most.
MOST = 4


def known_runs(params: Params, folder: Path) -> list[Run]:
    """What runs.runs_of gives. folder: of the methods' settings files.

    Settings, the files of methods, the code of this package, and the versions that check them decide the runs. Errors are never
    remembered, nor runs of methods of third parties, whose code lies elsewhere.
    """
    mark = _mark(params, folder)
    known = recall(MEMORY)
    if mark in known:
        runs = _read(known[mark], params)
        if runs:
            return runs
    runs = list(runs_of(params, folder))
    if all(closure.is_ours(run.module) for run in runs):
        text = _written(runs, params)
        if text and _read(text, params) == runs:
            known[mark] = text
            keep(MEMORY, known, MOST)
    return runs


def _mark(params: Params, folder: Path) -> str:
    digest = hashlib.sha256()
    versions = (*sys.version_info[:2], pydantic.VERSION)
    for part in (repr(versions), closure.tree(), params.model_dump_json()):
        digest.update(hashlib.sha256(part.encode()).digest())
    for path in sorted(folder.glob("*.yaml")):
        digest.update(hashlib.sha256(path.name.encode()).digest())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _written(runs: list[Run], params: Params) -> str:
    """The runs as JSON. A sampler is what it changes in the experiment's own, number by number as the file has it."""
    own = params.sampler.model_dump()
    rows = []
    for run in runs:
        changed = {
            name: value
            for name, value in run.sampler.model_dump().items()
            if value != own[name] or type(value) is not type(own[name])
        }
        plain: dict[str, Any] = {each.name: getattr(run, each.name) for each in fields(Run)}
        plain["files"] = [[file.setting, file.path, file.revision, file.counted] for file in run.files]
        rows.append(
            {**plain, "settings": dict(run.settings), "not_for": dict(run.not_for), "sampler": changed}
        )
    try:
        return json.dumps(rows)
    except TypeError:
        return ""


def _read(text: str, params: Params) -> list[Run]:
    """The runs that were written; none where the text is not what `_written` gives."""
    try:
        return [_run(row, params) for row in json.loads(text)]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def _run(row: dict[str, Any], params: Params) -> Run:
    lists = {
        "needs": tuple(row["needs"]),
        "architectures": tuple(row["architectures"]),
        "files": tuple(NamedFile(*file) for file in row["files"]),
        "about": tuple((name, value) for name, value in row["about"]),
        "sampler": params.sampler.model_copy(update=row["sampler"]),
    }
    return Run(**{**row, **lists})
