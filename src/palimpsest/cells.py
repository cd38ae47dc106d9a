"""A cell: one artifact of an experiment, named by the key of its recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from palimpsest.stamps import stamp

HEX = 16
PATTERNS = {
    "prompts": "data/shared/prompts/{suite}.{key}.parquet",
    "suppression": "data/shared/suppression/{theme}.{key}.parquet",
    "keywords": "data/shared/keywords/{name}.{key}.json",
    "images": "data/shared/images/{theme}/{role}-{chunk}.{key}.parquet",
    "gates": "data/shared/gates/{name}.{key}.json",
    "erase": "models/{method}/{preset}/{variant}.{key}.safetensors",
    "generate": "data/generations/{method}/{preset}/{variant}/{suite}-{shard}.{key}.parquet",
    "score": "data/scores/{method}/{preset}/{variant}/{suite}-{shard}.{detector}.{key}.parquet",
    "compare": "data/scores/{method}/{preset}/{variant}/compare/{suite}-{shard}.{key}.parquet",
    "aggregate": "data/tables/{experiment}/cells.{key}.parquet",
    "report": "reports/{experiment}-{key}/index.html",
}


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

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides the result, as plain data."""
        return {
            "step": self.step,
            "where": dict(self.where),
            "args": dict(self.args),
            "code": self.code,
            "raw": dict(self.raw),
            "inputs": [[c.step, "/".join(c.where.values()), c.key] for c in self.inputs],
        }

    @cached_property
    def key(self) -> str:
        text = json.dumps(self.recipe, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:HEX]

    @cached_property
    def path(self) -> str:
        return PATTERNS[self.step].format(**self.where, key=self.key)

    @property
    def name(self) -> str:
        """The place in words, e.g. `generate uce/diffusers2025/uncased.detailed/nsfw/0`."""
        return f"{self.step} {'/'.join(self.where.values())}"

    def spec(self) -> dict[str, Any]:
        """The plain dictionary that the job driver takes (see palimpsest.job)."""
        return {
            "step": self.step,
            "where": dict(self.where),
            "key": self.key,
            "args": dict(self.args),
            "inputs": [{"step": c.step, "where": dict(c.where), "path": c.path} for c in self.inputs],
            "output": self.path,
            **stamp(self.roots),
            "recipe": self.recipe,
            "hints": dict(self.hints),
        }
