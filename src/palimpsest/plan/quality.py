"""The cells that measure quality: per shard of a benign suite and measure, and one table of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from palimpsest import params
from palimpsest.cells import Cell, Shared
from palimpsest.metrics import measuring
from palimpsest.plan.pieces import Pieces
from palimpsest.runs import BASE


class Chosen:
    """A measure of the settings, checked."""

    def __init__(self, name: str, spec: Any) -> None:
        self.name = name
        self.kind = spec.kind
        where = f"quality.measures.{name} ({spec.kind})"
        try:
            self.module = measuring.find(spec.kind)
            self.settings = self.module.Settings.model_validate(spec.model_extra or {})
        except ValidationError as error:
            lines = params.problems_of(error, where, {"": list(self.module.Settings.model_fields)})
            raise params.BadSettings("\n".join(lines)) from error
        except ValueError as error:
            raise params.BadSettings(f"{where}: {error}") from error

    @property
    def args(self) -> dict[str, Any]:
        """What decides its result, as plain data."""
        return {"kind": self.kind, "settings": self.settings.model_dump(mode="json", exclude={"batch"})}

    @property
    def files(self) -> dict[str, tuple[str, str | None]]:
        """Setting -> (path, revision) of its weights."""
        revision = getattr(self.settings, "revision", None)
        return {
            name: (getattr(self.settings, name), revision if name == "path" else None)
            for name in self.module.FILES
        }


def chosen(settings: params.Params) -> list[Chosen]:
    """The measures of an experiment. Raises BadSettings naming what does not exist or what two measures both give."""
    found = [Chosen(name, spec) for name, spec in settings.quality.measures.items()]
    problems = []
    for name in settings.quality.real:
        if name not in settings.suites:
            problems.append(f"quality.real: {name!r} is no suite; allowed: {list(settings.suites)}")
    for name, spec in settings.quality.grd.items():
        if name not in settings.themes:
            problems.append(f"quality.grd: {name!r} is no theme; allowed: {list(settings.themes)}")
        if spec.detector not in settings.detectors:
            problems.append(
                f"quality.grd.{name}.detector: {spec.detector!r} is no detector; allowed: {list(settings.detectors)}"
            )
    known: dict[str, str] = {}
    for measure in found:
        given = [*measure.module.gives(measure.settings), *measure.module.feature_sets(measure.settings)]
        for metric in given:
            if metric in known:
                problems.append(
                    f"quality.measures: {known[metric]!r} and {measure.name!r} both give {metric!r}; keep one"
                )
            known[metric] = measure.name
    if problems:
        raise params.BadSettings("\n".join(problems))
    return found


class Builder:
    """Makes the cells of one plan. reference: the cell of the base's pictures at the size of comparison."""

    def __init__(self, pieces: Pieces, reference: Callable[[Cell], Cell]) -> None:
        self.pieces = pieces
        self.reference = reference
        self.measures = chosen(pieces.params)
        self.measured: list[Cell] = []
        self.real: dict[tuple[str, str], Cell] = {}
        self.parts: list[Cell] = []
        self._recipes: dict[tuple[str, str], tuple[Shared, Shared]] = {}

    def add(self, generated: Cell, base: Cell, prompts: Cell, scores: list[Cell]) -> None:
        """Everything that is measured on one shard; base: the same shard of the unerased model, which may be the same cell."""
        suite = generated.where["suite"]
        settings = self.pieces.params
        if settings.suites[suite].kind == "unsafe":
            wanted = {spec.detector for spec in settings.quality.grd.values()}
            self.parts += [cell for cell in scores if cell.where["detector"] in wanted]
            return
        for measure in self.measures:
            self.measured.append(self._measured(measure, generated, base))
            known = (suite, measure.name)
            if (
                suite in settings.quality.real
                and known not in self.real
                and measure.module.feature_sets(measure.settings)
            ):
                self.real[known] = self._real(measure, suite, prompts)

    def _measured(self, measure: Chosen, generated: Cell, base: Cell) -> Cell:
        needs = measure.module.needs(measure.settings)
        suite = generated.where["suite"]
        if (suite, measure.name) not in self._recipes:
            self._recipes[suite, measure.name] = self._recipe(measure, suite, "real" in needs)
        args, raw = self._recipes[suite, measure.name]
        paired = "base" in needs and generated is not base
        inputs = [generated, *([self.reference(base)] if paired else [])]
        where = {**generated.where, "measure": measure.name}
        return self.pieces.cell(
            "quality", where, args, inputs, self._roots(measure), raw, self._hints(measure)
        )

    def _recipe(self, measure: Chosen, suite: str, real: bool) -> tuple[Shared, Shared]:
        """Arguments and digests of a measure, the same for all shards of a suite. real: whether it needs the suite's real pictures."""
        args: dict[str, Any] = {"measure": measure.args}
        raw = {path: self.pieces.digest(path, revision) for path, revision in measure.files.values()}
        if real and suite in self.pieces.params.quality.real:
            args |= self._real_args(suite)
            raw |= self._real_raw(suite)
        return Shared(args), Shared(raw)

    def _real(self, measure: Chosen, suite: str, prompts: Cell) -> Cell:
        args = {"measure": measure.args, **self._real_args(suite)}
        raw = {path: self.pieces.digest(path, revision) for path, revision in measure.files.values()}
        raw |= self._real_raw(suite)
        where = {"suite": suite, "measure": measure.name}
        return self.pieces.cell(
            "real", where, args, [prompts], self._roots(measure), raw, self._hints(measure)
        )

    def _real_args(self, suite: str) -> dict[str, Any]:
        settings = self.pieces.params
        return {
            "real": settings.quality.real[suite].model_dump(),
            "resolution": settings.model.resolution,
        }

    def _real_raw(self, suite: str) -> dict[str, str]:
        path = self.pieces.params.quality.real[suite].path
        return {path: self.pieces.digest(path)}

    @staticmethod
    def _roots(measure: Chosen) -> tuple[str, ...]:
        return (f"palimpsest.metrics.{measure.kind}",)

    @staticmethod
    def _hints(measure: Chosen) -> Mapping[str, Any]:
        batch = getattr(measure.settings, "batch", None)
        return {"batch": batch} if batch else {}

    def table(self, runs: list[dict[str, Any]], here: Callable[[Cell], bool] = lambda _: True) -> Cell | None:
        """The table of everything that was measured; None when nothing is. here: which cells may be used (of a run that did not finish)."""
        settings = self.pieces.params
        inputs = [cell for cell in (*self.measured, *self.real.values(), *self.parts) if here(cell)]
        if not inputs:
            return None
        kinds = sorted({measure.kind for measure in self.measures})
        args = {
            "experiment": settings.experiment,
            "base": BASE,
            "runs": runs,
            "measures": {
                measure.name: {
                    **measure.args,
                    "gives": list(measure.module.gives(measure.settings)),
                    "sets": {
                        name: list(endings)
                        for name, endings in measure.module.feature_sets(measure.settings).items()
                    },
                }
                for measure in self.measures
            },
            "confidence": settings.statistics.confidence,
            # the number of resamples matters to GRD alone, so changing it does not make any other number again
            "grd": {
                name: {**spec.model_dump(), "resamples": settings.statistics.resamples, "seed": settings.seed}
                for name, spec in settings.quality.grd.items()
            },
        }
        modules = tuple(f"palimpsest.metrics.{kind}" for kind in kinds)
        where = {"experiment": settings.experiment}
        return self.pieces.cell("quality_table", where, args, inputs, modules)
