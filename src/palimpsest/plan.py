"""Every cell of an experiment, and the key of its recipe.

A cell's key is the digest of everything that decides its result: step, place, the arguments that the step reads, the code it
can reach, the contents of raw inputs, and the keys upstream. The key is in the file name, so an artifact either is the one that
is asked for or is not there. Nothing here loads torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from palimpsest import closure
from palimpsest.fingerprint import fingerprint
from palimpsest.keywords.collected import TABLE7
from palimpsest.methods import registry
from palimpsest.params import Model, Params, Sampler

HEX = 16
BASE = "sd"
UNERASED = "none"
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
            "roots": list(self.roots),
            "code": self.code,
            "recipe": self.recipe,
            "hints": dict(self.hints),
        }


@dataclass(frozen=True)
class Variant:
    """What a method erases. themes: one, or all; keyword_set: "detailed" | "concise"; images: training images per theme, or 0."""

    theme: str
    themes: tuple[str, ...]
    keyword_set: str
    images: int = 0
    total_images: int = 0

    @property
    def name(self) -> str:
        return UNERASED if self.theme == UNERASED else f"{self.theme}.{self.total_images or self.keyword_set}"


@dataclass(frozen=True)
class Run:
    """One method with one preset: checked settings and the sampler it generates with."""

    method: str
    preset: str
    module: str
    settings: Mapping[str, Any]
    sampler: Sampler
    fits: bool
    needs: tuple[str, ...]


class Plan:
    """All cells of an experiment, by path. `cells` is in the order the data flows."""

    def __init__(self, params: Params, root: Path = Path(".")) -> None:
        self.params = params
        self.root = root
        self.cells: dict[str, Cell] = {}
        self._model = self._model_args(params.model)
        self._prints: dict[tuple[str, str | None], str] = {}
        self._model_raw = self._print(params.model.path, params.model.revision)
        self.runs = list(self._runs())
        self.final = self._build()

    # --- pieces -----------------------------------------------------------------------------------------------------------

    def _cell(
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
        cell = Cell(step, dict(where), args, modules, _digest(modules), raw or {}, tuple(inputs), hints or {})
        return self.cells.setdefault(cell.path, cell)

    def _print(self, path: str, revision: str | None = None) -> str:
        if (path, revision) not in self._prints:
            self._prints[path, revision] = fingerprint(path, revision, self.root)
        return self._prints[path, revision]

    @staticmethod
    def _model_args(model: Model) -> dict[str, Any]:
        return model.model_dump()

    def _runs(self) -> Iterable[Run]:
        files = registry.settings_files(self.root / "methods")
        chosen = self.params.methods
        names = sorted(files) if chosen == "all" else list(chosen)
        for name in [BASE, *(n for n in names if n != BASE)]:
            if name not in files:
                raise registry.unknown_method(name, files)
            file = files[name]
            info = registry.get(file.method).INFO
            presets = file.run if chosen == "all" or not chosen.get(name) else chosen[name]
            for preset in presets:
                overrides = {**self.params.overrides.get(name, {}), **self.params.overrides.get(f"{name}/{preset}", {})}
                settings = registry.settings(name, preset, overrides, files=files)
                sampler = self.params.sampler.model_copy(update=file.samplers.get(preset, {}))
                module = registry.module_name(file.method)
                yield Run(name, preset, module, settings.model_dump(mode="json"), sampler, info.fits, tuple(info.needs))

    def variants(self, run: Run) -> list[Variant]:
        """The variants of a method: per theme and keyword set, or per theme and number of training images."""
        themes, chosen, sizes = tuple(self.params.themes), self.params.variants, self.params.training_images
        if run.method == BASE:
            return [Variant(UNERASED, (), "none")]
        found = []
        for theme in chosen.themes:
            covered = themes if theme == "all" else (theme,)
            if run.needs:
                per_theme = [math.ceil(sizes.all / len(themes))] if theme == "all" else sizes.sizes
                found += [Variant(theme, covered, "detailed", n, sizes.all if theme == "all" else n) for n in per_theme]
            else:
                sets = chosen.all_keyword_sets if theme == "all" else chosen.keyword_sets
                found += [Variant(theme, covered, keyword_set) for keyword_set in sets]
        return found

    def _target(self, variant: Variant) -> dict[str, Any]:
        """What the step needs to build a methods.contract.Target; keywords None means: read them from the keywords artifact."""
        themes = []
        for name in variant.themes:
            theme = self.params.themes[name]
            words: list[str] | None = theme.detailed
            if variant.keyword_set == "concise":
                words = theme.concise if self.params.keywords.concise == "given" else None
            themes.append({"name": name, "keywords": words, "safe": theme.safe})
        return {"themes": themes, "retain": self.params.retain}

    def _base_preset(self, sampler: Sampler) -> str:
        """The preset name of the unerased model under a sampler: every method is compared with a sampler-matched baseline."""
        own = self.params.sampler
        if _identity(sampler) == _identity(own):
            return "default"
        return f"{sampler.name.replace('+', 'p')}_{sampler.steps}_g{sampler.guidance:g}_{sampler.dtype}"

    # --- stages, in the order the data flows ----------------------------------------------------------------------------------

    def _build(self) -> Cell:
        params = self.params
        prompts = {name: self._prompts(name) for name in params.suites}
        self.keywords = self._keywords()
        scores: list[Cell] = []
        comparisons: list[Cell] = []
        for sampler in {_identity(r.sampler): r.sampler for r in self.runs}.values():
            base = self._base_run(sampler)
            base_cells = {suite: self._judged(base, Variant(UNERASED, (), "none"), suite, prompts[suite]) for suite in params.suites}
            for cells in base_cells.values():
                scores += [score for _, shard_scores in cells for score in shard_scores]
            for run in (r for r in self.runs if r.method != BASE and _identity(r.sampler) == _identity(sampler)):
                for variant in self.variants(run):
                    for suite in self._suites_for(variant):
                        cells = self._judged(run, variant, suite, prompts[suite])
                        scores += [score for _, shard_scores in cells for score in shard_scores]
                        comparisons += [
                            self._compare(ours, theirs) for ours, theirs in zip(cells, base_cells[suite], strict=True)
                        ]
        gates = [self._gates()] if params.gates else []
        return self._finish(scores, comparisons, [self.keywords, *gates])

    def _suites_for(self, variant: Variant) -> list[str]:
        """Theme-specific suites are run for that theme and for "all" only."""
        return [name for name, suite in self.params.suites.items() if suite.theme is None or suite.theme in variant.themes]

    def _prompts(self, name: str) -> Cell:
        suite = self.params.suites[name]
        files = [s.path for s in suite.sources.values()] + [s.toxicity for s in suite.sources.values() if s.toxicity]
        raw = {path: self._print(path) for path in files}
        args = {"suite": suite.model_dump(), "seed": self.params.seed}
        return self._cell("prompts", {"suite": name}, args, raw=raw)

    def _keywords(self) -> Cell:
        params = self.params
        themes = {name: theme.model_dump() for name, theme in params.themes.items()}
        matrices = [self._suppression(name) for name in params.themes] if params.keywords.concise == "derived" else []
        args = {"themes": themes, "keywords": params.keywords.model_dump()}
        raw = {str(TABLE7): self._print(str(TABLE7))}
        return self._cell("keywords", {"name": "sets"}, args, matrices, raw=raw)

    def _suppression(self, theme: str) -> Cell:
        params = self.params
        detector = params.detectors[params.judge]
        args = {
            "model": self._model,
            "sampler": _identity_dict(params.sampler),
            "keywords": params.themes[theme].detailed,
            "template": params.keywords.template,
            "seeds": params.keywords.seeds,
            "seed": params.seed,
            "detector": _detector_args(detector),
        }
        raw = {params.model.path: self._model_raw, detector.path: self._print(detector.path, detector.revision)}
        roots = ("palimpsest.methods.sd_np", f"palimpsest.detectors.{detector.kind}")
        return self._cell("suppression", {"theme": theme}, args, roots=roots, raw=raw, hints=self._hints(params.sampler, detector.batch))

    def _chunks(self, count: int) -> list[tuple[int, int]]:
        """Training images come in chunks bounded by the sizes in use, so that a larger set only adds images."""
        sizes = self.params.training_images
        bounds = sorted({0, *sizes.sizes, math.ceil(sizes.all / len(self.params.themes)), count})
        return [(a, b) for a, b in zip(bounds, bounds[1:], strict=False) if b <= count]

    def _images(self, theme: str, role: str, count: int) -> list[Cell]:
        params, sampler = self.params, self.params.training_images.sampler
        spec = params.themes[theme]
        cells = []
        for start, stop in self._chunks(count):
            args = {
                "model": self._model,
                "sampler": _identity_dict(sampler),
                "templates": params.training_images.templates,
                "subjects": spec.detailed if role == "target_images" else [spec.safe],
                "avoid": spec.detailed if role == "safe_images" else [],
                "start": start,
                "stop": stop,
                "seed": params.seed,
            }
            where = {"theme": theme, "role": role, "chunk": f"{start}_{stop}"}
            cells.append(self._cell("images", where, args, raw={params.model.path: self._model_raw}, hints=self._hints(sampler)))
        return cells

    def _base_run(self, sampler: Sampler) -> Run:
        own = next(r for r in self.runs if r.method == BASE)
        return Run(BASE, self._base_preset(sampler), own.module, own.settings, sampler, False, ())

    def _erase(self, run: Run, variant: Variant) -> list[Cell]:
        if not run.fits:
            return []
        images = [cell for role in run.needs for theme in variant.themes for cell in self._images(theme, role, variant.images)]
        args = {
            "model": self._model,
            "method": run.module,
            "settings": run.settings,
            "target": self._target(variant),
            "seed": self.params.seed,
            "resolution": self.params.model.resolution,
        }
        where = {"method": run.method, "preset": run.preset, "variant": variant.name}
        inputs = [*self._keyword_inputs(variant), *images]
        return [self._cell("erase", where, args, inputs, (run.module,), {self.params.model.path: self._model_raw})]

    def _keyword_inputs(self, variant: Variant) -> list[Cell]:
        derived = variant.keyword_set == "concise" and self.params.keywords.concise == "derived"
        return [self.keywords] if derived else []

    def _judged(self, run: Run, variant: Variant, suite: str, prompts: Cell) -> list[tuple[Cell, list[Cell]]]:
        """Per shard: the generations of one method on one suite, and the scores of every detector."""
        artifact = self._erase(run, variant)
        upstream = [prompts, *artifact, *([] if artifact else self._keyword_inputs(variant))]
        cells = []
        for shard in range(self.shards(suite)):
            args = {
                "model": self._model,
                "sampler": _identity_dict(run.sampler),
                "method": run.module,
                "settings": run.settings,
                "target": self._target(variant),
                "shard": [shard, self.params.suites[suite].shard],
            }
            where = {"method": run.method, "preset": run.preset, "variant": variant.name, "suite": suite, "shard": str(shard)}
            raw = {self.params.model.path: self._model_raw}
            generated = self._cell("generate", where, args, upstream, (run.module,), raw, self._hints(run.sampler))
            cells.append((generated, [self._score(generated, name) for name in self.params.detectors]))
        return cells

    def _score(self, generated: Cell, name: str) -> Cell:
        params, detector = self.params, self.params.detectors[name]
        args = {
            "detector": _detector_args(detector),
            "themes": {theme: spec.detailed for theme, spec in params.themes.items()},
            "texts": {rule: spec.texts for rule, spec in params.rules.items() if spec.texts},
        }
        raw = {detector.path: self._print(detector.path, detector.revision)}
        where = {**generated.where, "detector": name}
        return self._cell("score", where, args, [generated], (f"palimpsest.detectors.{detector.kind}",), raw, {"batch": detector.batch})

    def _compare(self, ours: tuple[Cell, list[Cell]], base: tuple[Cell, list[Cell]]) -> Cell:
        judge = list(self.params.detectors).index(self.params.judge)
        args = {
            "pairs": self.params.report.pairs,
            "themes": list(self.params.themes),
        }
        return self._cell("compare", ours[0].where, args, [ours[0], base[0], base[1][judge]])

    def _gates(self) -> Cell:
        params = self.params
        detector = params.detectors[params.judge]
        args = {
            "model": self._model,
            "sampler": _identity_dict(params.sampler),
            "detector": _detector_args(detector),
            "themes": {name: theme.detailed for name, theme in params.themes.items()},
            "gates": params.gates,
            "seed": params.seed,
        }
        raw = {path: self._print(path) for path in (params.model.path, detector.path, *params.gates.get("files", []))}
        roots = (f"palimpsest.detectors.{detector.kind}",)
        return self._cell("gates", {"name": params.experiment}, args, roots=roots, raw=raw, hints=self._hints(params.sampler))

    def _finish(self, scores: list[Cell], comparisons: list[Cell], shared: list[Cell]) -> Cell:
        params = self.params
        where = {"experiment": params.experiment}
        args = {
            "experiment": params.experiment,
            "themes": {name: theme.detailed for name, theme in params.themes.items()},
            "suites": {name: suite.kind for name, suite in params.suites.items()},
            "rules": {name: rule.model_dump() for name, rule in params.rules.items()},
            "statistics": params.statistics.model_dump(),
            "seed": params.seed,
            "runs": [self._run_row(run, variant) for run in self.runs for variant in self.variants(run)],
        }
        self.aggregate = self._cell("aggregate", where, args, [*scores, *comparisons])
        folder = Path(__file__).parent / "reports"
        assets = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".html", ".css", ".js", ".j2"))
        raw = {f"reports/{p.relative_to(folder)}": self._print(str(p)) for p in assets}
        methods = sorted({run.module for run in self.runs})
        args = {"params": params.model_dump(mode="json"), "methods": methods}
        return self._cell("report", where, args, [self.aggregate, *scores, *comparisons, *shared], methods, raw)

    def _run_row(self, run: Run, variant: Variant) -> dict[str, Any]:
        """What the aggregation must know of a method and variant to fill its table."""
        return {
            "method": run.method,
            "preset": run.preset,
            "variant": variant.name,
            "theme": variant.theme,
            "themes": list(variant.themes),
            "keyword_set": variant.keyword_set,
            "training_images": variant.total_images,
            "base": self._base_preset(run.sampler),
            "suites": self._suites_for(variant),
        }

    def shards(self, suite: str) -> int:
        """Number of shards of a suite, from the row counts that the settings declare."""
        spec = self.params.suites[suite]
        rows = [s.rows * s.repetitions if s.rows else 0 for s in spec.sources.values()]
        return max(1, math.ceil(sum(rows) / spec.shard)) if all(rows) else 1

    def _hints(self, sampler: Sampler, judge_batch: int = 0) -> dict[str, Any]:
        return {"batch": sampler.batch, **({"judge_batch": judge_batch} if judge_batch else {})}

    # --- questions about the plan ------------------------------------------------------------------------------------------------

    def missing(self) -> list[Cell]:
        """Cells whose artifact is not there."""
        return [cell for cell in self.cells.values() if not (self.root / cell.path).exists()]

    def needed(self) -> list[Cell]:
        """Cells that a run would make: missing ones that the report, or another needed cell, asks for."""
        found: dict[str, Cell] = {}
        stack = [self.final]
        while stack:
            cell = stack.pop()
            if cell.path in found or (self.root / cell.path).exists():
                continue
            found[cell.path] = cell
            stack += cell.inputs
        return [cell for path, cell in self.cells.items() if path in found]


@lru_cache(maxsize=None)
def _digest(modules: tuple[str, ...]) -> str:
    return closure.digest(modules)


def _identity_dict(sampler: Sampler) -> dict[str, Any]:
    return sampler.model_dump(exclude={"batch"})


def _identity(sampler: Sampler) -> str:
    return json.dumps(_identity_dict(sampler), sort_keys=True)


def _detector_args(detector: Any) -> dict[str, Any]:
    return detector.model_dump(exclude={"batch"})


def build(params: Params, root: str | Path = ".") -> Plan:
    """The plan of an experiment in a project folder. Raises params.BadSettings for settings that name unknown methods or presets."""
    return Plan(params, Path(root))
