"""What every part of a plan is made with: cells with their keys, digests, and the texts that many recipes share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from palimpsest.cells import Cell, Shared
from palimpsest.detectors import registry as detectors
from palimpsest.fingerprint import fingerprint
from palimpsest.params import Params, Sampler
from palimpsest.runs import Run, Variant, identity, target_of
from palimpsest.stamps import stamp


class Pieces:
    """The settings of an experiment, its cells so far by path, and how a cell is made. `cells` is in the order the data flows."""

    def __init__(self, params: Params, root: Path) -> None:
        self.params = params
        self.root = root
        self.cells: dict[str, Cell] = {}
        self.detectors = detectors.chosen(params)
        # What many cells read alike is one object, whose text is made once for all their keys.
        self.model = Shared(params.model.model_dump())
        self.judges_raw = {name: Shared(found.raw(root)) for name, found in self.detectors.items()}
        self._samplings: dict[Sampler, Shared] = {}
        self._judging: dict[tuple[str, tuple[str, ...]], Shared] = {}
        self._targets: dict[Variant, Shared] = {}
        self._raws: dict[tuple[str, str], Shared] = {}
        self._prints: dict[tuple[str, str | None], str] = {}
        self.model_raw = self.digest(params.model.path, params.model.revision)

    def cell(
        self,
        step: str,
        where: Mapping[str, str],
        args: Mapping[str, Any],
        inputs: Iterable[Cell] = (),
        roots: Sequence[str] = (),
        raw: Mapping[str, str] | None = None,
        hints: Mapping[str, Any] | None = None,
    ) -> Cell:
        modules = (f"palimpsest.steps.{step}", "palimpsest.job", *roots)
        cell = Cell(
            step,
            dict(where),
            args,
            modules,
            stamp(modules)["code"],
            raw or {},
            tuple(inputs),
            hints or {},
        )
        return self.cells.setdefault(cell.path, cell)

    def digest(self, path: str, revision: str | None = None) -> str:
        if (path, revision) not in self._prints:
            self._prints[path, revision] = fingerprint(path, revision, self.root)
        return self._prints[path, revision]

    def sampling(self, sampler: Sampler) -> Shared:
        if sampler not in self._samplings:
            self._samplings[sampler] = Shared(identity(sampler))
        return self._samplings[sampler]

    def target(self, variant: Variant) -> Shared:
        if variant not in self._targets:
            self._targets[variant] = Shared(target_of(self.params, variant))
        return self._targets[variant]

    def questions(self, name: str, variant: Variant) -> Shared:
        """What a detector is asked of a variant: only the themes that it erases are asked for in detail."""
        params = self.params
        asked = variant.themes or tuple(params.themes)
        if (name, asked) not in self._judging:
            self._judging[name, asked] = Shared(
                detector=self.detectors[name].args,
                themes={theme: spec.detailed for theme, spec in params.themes.items()},
                texts=self.detectors[name].texts(params.rules),
                in_detail=list(asked),
            )
        return self._judging[name, asked]

    def shards(self, suite: str) -> int:
        """Number of shards of a suite, from the row counts that the settings declare."""
        spec = self.params.suites[suite]
        rows = [s.rows * s.repetitions if s.rows else 0 for s in spec.sources.values()]
        return max(1, math.ceil(sum(rows) / spec.shard)) if all(rows) else 1

    def hints(self, sampler: Sampler, judge_batch: int = 0) -> dict[str, Any]:
        return {"batch": sampler.batch, **({"judge_batch": judge_batch} if judge_batch else {})}

    def raw(self, run: Run) -> Shared:
        """Digests of the checkpoint and of the files that the method's settings name."""
        known = (run.method, run.preset)
        if known not in self._raws:
            named = {file.counted: self.digest(file.counted, file.revision) for file in run.files}
            self._raws[known] = Shared({self.params.model.path: self.model_raw, **named})
        return self._raws[known]

    @cached_property
    def rules(self) -> dict[str, dict[str, Any]]:
        """The rules with the detectors that each is for."""
        return {
            name: rule.model_dump() | {"detectors": detectors.judged_by(self.params, self.detectors, rule)}
            for name, rule in self.params.rules.items()
        }
