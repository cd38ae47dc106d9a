"""A cell: one artifact of an experiment, named by the key of its recipe."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from json.encoder import encode_basestring as quoted
from pathlib import Path
from typing import Any

from palimpsest.stamps import stamp

HEX = 16
ENCODE = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
PATTERNS = {
    "prompts": "data/shared/prompts/{suite}.{key}.parquet",
    "suppression": "data/shared/suppression/{theme}.{key}.parquet",
    "keywords": "data/shared/keywords/{name}.{key}.json",
    "images": "data/shared/images/{theme}/{role}-{chunk}.{key}.parquet",
    "masks": "data/shared/masks/{theme}/{chunk}.{key}.parquet",
    "gates": "data/shared/gates/{name}.{key}.json",
    "renders": "data/shared/renders/{detector}.{key}.parquet",
    "erase": "models/{method}/{preset}/{variant}.{key}.safetensors",
    "generate": "data/generations/{method}/{preset}/{variant}/{suite}-{shard}.{key}.parquet",
    "score": "data/scores/{method}/{preset}/{variant}/{suite}-{shard}.{detector}.{key}.parquet",
    "reference": "data/scores/{method}/{preset}/{variant}/images/{suite}-{shard}.{key}.parquet",
    "compare": "data/scores/{method}/{preset}/{variant}/compare/{suite}-{shard}.{key}.parquet",
    "quality": "data/scores/{method}/{preset}/{variant}/quality/{suite}-{shard}.{measure}.{key}.parquet",
    "real": "data/shared/real/{suite}.{measure}.{key}.parquet",
    "quality_table": "data/tables/{experiment}/quality.{key}.parquet",
    "aggregate": "data/tables/{experiment}/cells.{key}.parquet",
    "classifiers": "data/tables/{experiment}/classifiers.{key}.parquet",
    "report": "reports/{experiment}-{key}/index.html",
}
# What a job writes beside its artifact, before it, by name: measurements that differ from run to run, where the artifact itself must not.
BESIDE = {"aggregate": {"costs": "data/tables/{experiment}/costs.{key}.parquet"}}


class Shared(dict[str, Any]):
    """Plain data that the recipes of many cells have in common: its text is made once. It must not be changed."""

    @cached_property
    def text(self) -> str:
        return ENCODE(self)


def _text(value: Any) -> str:
    """The value as JSON; what recipes are mostly made of without the encoder, which is set up anew for every value."""
    kind = type(value)
    if kind is Shared:
        return str(value.text)
    return quoted(value) if kind is str else ENCODE(value)


def _plain(value: Any) -> Any:
    """The value in the types of JSON alone, which a job can read without this module."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, eq=False)
class Cell:
    """One artifact: what it is (`where`), what decides it (`recipe`), its key and its path relative to the project."""

    step: str
    where: Mapping[str, str]
    args: Mapping[str, Any]
    roots: tuple[str, ...]
    code: str
    raw: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Cell, ...] = ()
    hints: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(init=False)
    key: str = field(init=False)
    path: str = field(init=False)
    mention: str = field(init=False)

    def __post_init__(self) -> None:
        # every cell of a plan needs these, and most plans are made to look at nothing else
        object.__setattr__(self, "place", "/".join(self.where.values()))
        object.__setattr__(self, "key", hashlib.sha256(self.text().encode()).hexdigest()[:HEX])
        object.__setattr__(self, "path", PATTERNS[self.step].format(**self.where, key=self.key))
        # how the recipes of what is made from this cell name it
        object.__setattr__(self, "mention", f'["{self.step}", {quoted(self.place)}, "{self.key}"]')

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides the result, as plain data."""
        return {
            "step": self.step,
            "where": dict(self.where),
            "args": _plain(self.args),
            "code": self.code,
            "raw": dict(self.raw),
            "inputs": self._inputs(),
        }

    def _inputs(self) -> list[list[str]]:
        return [[cell.step, cell.place, cell.key] for cell in self.inputs]

    def text(self) -> str:
        """The recipe as JSON with sorted names, put together from parts, of which many cells share the largest."""
        args = self.args
        if isinstance(args, Shared):
            known = args.text
        else:
            known = f"{{{', '.join([f'{quoted(name)}: {_text(args[name])}' for name in sorted(args)])}}}"
        where = ", ".join([f'"{name}": {quoted(self.where[name])}' for name in sorted(self.where)])
        inputs = ", ".join([cell.mention for cell in self.inputs])
        return (
            f'{{"args": {known}, "code": "{self.code}", "inputs": [{inputs}], "raw": {_text(self.raw)}, '
            f'"step": "{self.step}", "where": {{{where}}}}}'
        )

    @property
    def beside(self) -> dict[str, str]:
        """The paths of what lies beside the artifact, by name."""
        places = BESIDE.get(self.step, {})
        return {name: place.format(**self.where, key=self.key) for name, place in places.items()}

    @property
    def files(self) -> dict[str, str]:
        """All paths that stand for this cell: its own by its step, then those beside it by their names."""
        return {self.step: self.path, **self.beside}

    def made(self, root: Path) -> bool:
        """Whether the artifact is there, with all that belongs beside it."""
        # asked for every cell of a plan, and a path object costs as much as the question
        there, folder = os.path.exists, os.fspath(root)
        return there(os.path.join(folder, self.path)) and all(
            there(os.path.join(folder, path)) for path in self.beside.values()
        )

    @property
    def name(self) -> str:
        """The place in words, e.g. `generate uce/diffusers2025/uncased.detailed/nsfw/0`."""
        return f"{self.step} {self.place}"

    def spec(self) -> dict[str, Any]:
        """The plain dictionary that the job driver takes (see palimpsest.job)."""
        return {
            "step": self.step,
            "where": dict(self.where),
            "key": self.key,
            "args": _plain(self.args),
            "inputs": [
                {"step": kind, "where": dict(c.where), "path": path}
                for c in self.inputs
                for kind, path in c.files.items()
            ],
            "output": self.path,
            "beside": self.beside,
            **stamp(self.roots),
            "recipe": self.recipe,
            "hints": dict(self.hints),
        }
