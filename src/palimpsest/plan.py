"""Every cell of an experiment, and the key of its recipe.

A cell's key is the digest of everything that decides its result: step, place, the arguments that the step reads, the code it
can reach, the contents of raw inputs, and the keys upstream. The key is in the file name, so an artifact either is the one that
is asked for or is not there. Nothing here loads torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from palimpsest.cells import Cell, Shared
from palimpsest.detectors import registry as detectors
from palimpsest.fingerprint import fingerprint
from palimpsest.keywords.collected import TABLE7
from palimpsest.labelled import label_files
from palimpsest.params import Params, Sampler
from palimpsest.plan_quality import Builder
from palimpsest.reference import FILES, REFERENCE, is_published
from palimpsest.runs import (
    BASE,
    UNERASED,
    Run,
    Variant,
    base_preset,
    identity,
    not_applicable,
    run_row,
    runs_of,
    same,
    suites_for,
    target_of,
    variants_of,
)
from palimpsest.segmenters import registry as segmenters
from palimpsest.stamps import stamp

Tables = tuple[dict[str, str], dict[str, Any], list[Cell], list[Cell], list[Cell]]


class Plan:
    """All cells of an experiment, by path. `cells` is in the order the data flows."""

    def __init__(self, params: Params, root: Path = Path(".")) -> None:
        self.params = params
        self.root = root
        self.cells: dict[str, Cell] = {}
        self.detectors = detectors.chosen(params)
        self._judges_raw = {name: found.raw(root) for name, found in self.detectors.items()}
        self._model = Shared(params.model.model_dump())
        self._samplings: dict[Sampler, Shared] = {}
        self._judging: dict[tuple[str, tuple[str, ...]], Shared] = {}
        self._targets: dict[Variant, Shared] = {}
        self._comparing: dict[str, Shared] = {}
        self._prints: dict[tuple[str, str | None], str] = {}
        self._model_raw = self._print(params.model.path, params.model.revision)
        self.runs = [replace(run, settings=Shared(run.settings)) for run in runs_of(params, root / "methods")]
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

    def _print(self, path: str, revision: str | None = None) -> str:
        if (path, revision) not in self._prints:
            self._prints[path, revision] = fingerprint(path, revision, self.root)
        return self._prints[path, revision]

    # What many cells read alike is one object, whose text is made once for all their keys.

    def _sampling(self, sampler: Sampler) -> Shared:
        if sampler not in self._samplings:
            self._samplings[sampler] = Shared(identity(sampler))
        return self._samplings[sampler]

    def _target(self, variant: Variant) -> Shared:
        if variant not in self._targets:
            self._targets[variant] = Shared(target_of(self.params, variant))
        return self._targets[variant]

    def _questions(self, name: str, variant: Variant) -> Shared:
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

    def _samplers(self) -> list[Sampler]:
        """The different samplers in use, the experiment's own first."""
        found: list[Sampler] = []
        for run in self.runs:
            if not any(same(run.sampler, known) for known in found):
                found.append(run.sampler)
        return found

    # --- stages, in the order the data flows ----------------------------------------------------------------------------------

    def _build(self) -> Cell:
        params = self.params
        self._fits: dict[tuple[str, str, str], Cell] = {}
        self._references: dict[str, Cell] = {}
        self._masked: dict[str, int] = {}
        self.quality = Builder(self, self._reference)
        prompts = {name: self._prompts(name) for name in params.suites}
        self.keywords = self._keywords()
        scores: list[Cell] = []
        comparisons: list[Cell] = []
        for sampler in self._samplers():
            base = self._base_run(sampler)
            base_cells = {
                suite: self._judged(base, Variant(UNERASED, (), "none"), suite, prompts[suite])
                for suite in params.suites
            }
            for suite, cells in base_cells.items():
                scores += [score for _, shard_scores in cells for score in shard_scores]
                for generated, judged in cells:
                    self.quality.add(generated, generated, prompts[suite], judged)
            for run in (r for r in self.applicable() if r.method != BASE and same(r.sampler, sampler)):
                for variant in variants_of(params, run):
                    for suite in suites_for(params, variant):
                        cells = self._judged(run, variant, suite, prompts[suite])
                        scores += [score for _, shard_scores in cells for score in shard_scores]
                        comparisons += [
                            self._compare(ours, theirs)
                            for ours, theirs in zip(cells, base_cells[suite], strict=True)
                        ]
                        for ours, theirs in zip(cells, base_cells[suite], strict=True):
                            self.quality.add(ours[0], theirs[0], prompts[suite], ours[1])
        if self._masked:
            segmenters.check(params, self._masked, self.root)
        gates = [self._gates()] if params.gates else []
        # the report sets toxicity, which only the prompt table has, against verdicts on the first unsafe suite of no theme
        free = [n for n, suite in params.suites.items() if suite.kind == "unsafe" and suite.theme is None][:1]
        toxicities = [prompts[name] for name in free]
        classifiers = self._classifiers(scores)
        return self._finish(scores, comparisons, [self.keywords, *toxicities, *gates, *classifiers])

    def _prompts(self, name: str) -> Cell:
        suite = self.params.suites[name]
        files = [s.path for s in suite.sources.values()] + [
            s.toxicity for s in suite.sources.values() if s.toxicity
        ]
        raw = {path: self._print(path) for path in files}
        args = {"suite": suite.model_dump(exclude={"all_themes", "variants"}), "seed": self.params.seed}
        return self._cell("prompts", {"suite": name}, args, raw=raw)

    def _keywords(self) -> Cell:
        params = self.params
        themes = {name: theme.model_dump() for name, theme in params.themes.items()}
        matrices = (
            [self._suppression(name) for name in params.themes]
            if params.keywords.concise == "derived"
            else []
        )
        args = {"themes": themes, "keywords": params.keywords.model_dump()}
        raw = {str(TABLE7): self._print(str(TABLE7))}
        return self._cell("keywords", {"name": "sets"}, args, matrices, raw=raw)

    def _suppression(self, theme: str) -> Cell:
        params = self.params
        judge = self.detectors[params.judge]
        args = {
            "model": self._model,
            "sampler": self._sampling(params.sampler),
            "keywords": params.themes[theme].detailed,
            "template": params.keywords.template,
            "seeds": params.keywords.seeds,
            "seed": params.seed,
            "detector": judge.args,
        }
        raw = {params.model.path: self._model_raw, **self._judges_raw[judge.name]}
        roots = ("palimpsest.methods.sd_np", judge.module)
        return self._cell(
            "suppression",
            {"theme": theme},
            args,
            roots=roots,
            raw=raw,
            hints=self._hints(params.sampler, judge.spec.batch),
        )

    def _chunks(self, count: int) -> list[tuple[int, int]]:
        """Training images come in chunks bounded by the sizes in use, so that a larger set only adds images."""
        sizes = self.params.training_images
        bounds = sorted({0, *sizes.sizes, math.ceil(sizes.all / len(self.params.themes)), count})
        return [(a, b) for a, b in pairwise(bounds) if b <= count]

    def _images(self, theme: str, role: str, count: int) -> list[Cell]:
        if role == "masked_images":
            return self._masks(theme, count)
        params, sampler = self.params, self.params.training_images.sampler
        spec = params.themes[theme]
        cells = []
        for start, stop in self._chunks(count):
            args = {
                "model": self._model,
                "sampler": self._sampling(sampler),
                "templates": params.training_images.templates,
                "subjects": spec.detailed if role == "target_images" else [spec.safe],
                "avoid": spec.detailed if role == "safe_images" else [],
                "start": start,
                "stop": stop,
                "seed": params.seed,
            }
            where = {"theme": theme, "role": role, "chunk": f"{start}_{stop}"}
            cells.append(
                self._cell(
                    "images",
                    where,
                    args,
                    raw={params.model.path: self._model_raw},
                    hints=self._hints(sampler),
                )
            )
        return cells

    def _masks(self, theme: str, count: int) -> list[Cell]:
        """Masked images, in the chunks of the target images that they are made from (or read from a file instead)."""
        self._masked[theme] = max(count, self._masked.get(theme, 0))
        chosen, chunks = self._segmenter, self._chunks(count)
        reads = chosen.segmenter.INFO.reads == "target_images"
        pictures = (
            [[cell] for cell in self._images(theme, "target_images", count)] if reads else [[]] * len(chunks)
        )
        raw = {path: self._print(path, revision) for path, revision in chosen.files.values()}
        cells = []
        for (start, stop), inputs in zip(chunks, pictures, strict=True):
            args = {
                "segmenter": chosen.args,
                "keywords": self.params.themes[theme].detailed,
                "start": start,
                "stop": stop,
                "resolution": self.params.model.resolution,
            }
            where = {"theme": theme, "chunk": f"{start}_{stop}"}
            cells.append(self._cell("masks", where, args, inputs, (chosen.module,), raw))
        return cells

    @cached_property
    def _segmenter(self) -> segmenters.Chosen:
        return segmenters.chosen(self.params)

    def applicable(self) -> list[Run]:
        """The runs that the experiment's model allows."""
        return [run for run in self.runs if not_applicable(self.params, run) is None]

    def _raw(self, run: Run) -> dict[str, str]:
        """Digests of the checkpoint and of the files that the method's settings name."""
        named = {file.counted: self._print(file.counted, file.revision) for file in run.files}
        return {self.params.model.path: self._model_raw, **named}

    def _base_run(self, sampler: Sampler) -> Run:
        own = next(r for r in self.runs if r.method == BASE)
        return Run(BASE, base_preset(self.params, sampler), own.module, own.settings, sampler, False, ())

    def _erase(self, run: Run, variant: Variant) -> list[Cell]:
        if not run.fits:
            return []
        known = (run.method, run.preset, variant.name)
        if known not in self._fits:
            self._fits[known] = self._fit(run, variant)
        return [self._fits[known]]

    def _fit(self, run: Run, variant: Variant) -> Cell:
        images = [
            cell
            for role in run.needs
            for theme in variant.themes
            for cell in self._images(theme, role, variant.images)
        ]
        args = {
            "model": self._model,
            "method": run.module,
            # strength acts when a method is applied, so another strength needs no other fit
            "settings": {name: value for name, value in run.settings.items() if name != "strength"},
            "target": self._target(variant),
            "seed": self.params.seed,
            "resolution": self.params.model.resolution,
        }
        where = {"method": run.method, "preset": run.preset, "variant": variant.name}
        inputs = [*self._keyword_inputs(variant), *images]
        return self._cell("erase", where, args, inputs, (run.module,), self._raw(run))

    def _keyword_inputs(self, variant: Variant) -> list[Cell]:
        derived = variant.keyword_set == "concise" and self.params.keywords.concise == "derived"
        return [self.keywords] if derived else []

    def _judged(self, run: Run, variant: Variant, suite: str, prompts: Cell) -> list[tuple[Cell, list[Cell]]]:
        """Per shard: the generations of one method on one suite, and the scores of every detector."""
        artifact = self._erase(run, variant)
        upstream = [prompts, *artifact, *self._keyword_inputs(variant)]
        cells = []
        for shard in range(self.shards(suite)):
            args = {
                "model": self._model,
                "sampler": self._sampling(run.sampler),
                "method": run.module,
                "settings": run.settings,
                "target": self._target(variant),
                "shard": [shard, self.params.suites[suite].shard],
            }
            where = {
                "method": run.method,
                "preset": run.preset,
                "variant": variant.name,
                "suite": suite,
                "shard": str(shard),
            }
            generated = self._cell(
                "generate", where, args, upstream, (run.module,), self._raw(run), self._hints(run.sampler)
            )
            scores = [self._score(generated, name, variant) for name in self.params.detectors]
            cells.append((generated, scores))
        return cells

    def _score(self, generated: Cell, name: str, variant: Variant) -> Cell:
        detector = self.detectors[name]
        where = {**generated.where, "detector": name}
        return self._cell(
            "score",
            where,
            self._questions(name, variant),
            [generated],
            (detector.module,),
            self._judges_raw[name],
            {"batch": detector.spec.batch},
        )

    def _reference(self, generated: Cell) -> Cell:
        """The base's images at the size of comparison; only those that something is compared with."""
        if generated.path not in self._references:
            self._references[generated.path] = self._cell("reference", generated.where, {}, [generated])
        return self._references[generated.path]

    def _compare(self, ours: tuple[Cell, list[Cell]], base: tuple[Cell, list[Cell]]) -> Cell:
        judge = list(self.params.detectors).index(self.params.judge)
        inputs = [ours[0], self._reference(base[0]), base[1][judge]]
        suite = ours[0].where["suite"]
        if suite not in self._comparing:
            shown = self.params.report
            small = math.ceil(shown.thumbnails / self.shards(suite))
            self._comparing[suite] = Shared(
                pairs=shown.pairs, themes=list(self.params.themes), thumbnails=small
            )
        return self._cell("compare", ours[0].where, self._comparing[suite], inputs)

    def _gates(self) -> Cell:
        params = self.params
        judge = self.detectors[params.judge]
        args = {
            "model": self._model,
            "sampler": self._sampling(params.sampler),
            "detector": judge.args,
            "themes": {name: theme.detailed for name, theme in params.themes.items()},
            "gates": params.gates,
            "seed": params.seed,
        }
        files = (params.model.path, *params.gates.get("files", []))
        raw = {path: self._print(path) for path in files} | self._judges_raw[judge.name]
        roots = (judge.module,)
        return self._cell(
            "gates",
            {"name": params.experiment},
            args,
            roots=roots,
            raw=raw,
            hints=self._hints(params.sampler),
        )

    @cached_property
    def _rules(self) -> dict[str, dict[str, Any]]:
        """The rules with the detectors that each is for."""
        return {
            name: rule.model_dump() | {"detectors": detectors.judged_by(self.params, self.detectors, rule)}
            for name, rule in self.params.rules.items()
        }

    def _renders(self, name: str) -> Cell:
        """What a detector says about held-out pictures of the micro world. No label of a person is in its recipe."""
        params, detector = self.params, self.detectors[name]
        every = self._questions(name, Variant(UNERASED, (), "none"))
        args = {**every, "count": params.classifiers.renders, "seed": params.seed}
        hints = {"batch": detector.spec.batch}
        raw = self._judges_raw[name]
        return self._cell("renders", {"detector": name}, args, roots=(detector.module,), raw=raw, hints=hints)

    def _classifiers(self, scores: list[Cell]) -> list[Cell]:
        """How right the detectors are, where there are labels. Labels of people enter here and nowhere else, so that new ones generate
        and judge nothing again."""
        params = self.params
        # a detector that no rule reads gives no verdict that could be right or wrong
        judging = {name for rule in self._rules.values() for name in rule["detectors"]}
        known = [name for name in params.detectors if name in judging]
        renders = [self._renders(name) for name in known] if params.classifiers.renders else []
        labels = label_files(self.root, params.experiment)
        if not renders and not labels:
            return []
        args = {
            "themes": {name: theme.detailed for name, theme in params.themes.items()},
            "rules": self._rules,
            "statistics": params.statistics.model_dump(),
            "seed": params.seed,
            "labels": list(labels),
        }
        where = {"experiment": params.experiment}
        judged = [score for score in scores if score.where["detector"] in judging] if labels else []
        return [self._cell("classifiers", where, args, [*renders, *judged], raw=labels)]

    def _finish(self, scores: list[Cell], comparisons: list[Cell], shared: list[Cell]) -> Cell:
        params = self.params
        where = {"experiment": params.experiment}
        runs = [
            run_row(params, run, variant) for run in self.applicable() for variant in variants_of(params, run)
        ]
        args = {
            "experiment": params.experiment,
            "themes": {name: theme.detailed for name, theme in params.themes.items()},
            "suites": {name: suite.kind for name, suite in params.suites.items()},
            "rules": self._rules,
            "statistics": params.statistics.model_dump(),
            "seed": params.seed,
            "runs": runs,
        }
        skipped = [
            {"reason": reason, "run": run_row(params, run, variant)}
            for run in self.runs
            if (reason := not_applicable(params, run))
            for variant in variants_of(params, run)
        ]
        if skipped:
            args["skipped"] = skipped
        table = self.quality.table(runs)
        shared = [*shared, *([table] if table else [])]
        self.tables: Tables = (where, args, scores, comparisons, shared)
        return self.report(*self.tables)

    def report(
        self,
        where: Mapping[str, str],
        args: Mapping[str, Any],
        scores: list[Cell],
        comparisons: list[Cell],
        shared: list[Cell],
    ) -> Cell:
        """The table and the report of these scores, comparisons and shared artifacts."""
        params = self.params
        self.aggregate = self._cell("aggregate", where, args, [*scores, *comparisons])
        folder = Path(__file__).parent / "reports"
        assets = sorted(
            p for p in folder.rglob("*") if p.is_file() and p.suffix in (".html", ".css", ".js", ".j2")
        )
        raw = {f"reports/{p.relative_to(folder)}": self._print(str(p)) for p in assets}
        measured = sorted(
            p.relative_to(self.root).as_posix() for p in (self.root / "benchmarks/results").glob("*.json")
        )
        raw |= {path: self._print(path) for path in measured}
        methods = [
            {"name": run.method, "module": run.module, "title": run.title, **dict(run.about)}
            for run in {run.method: run for run in self.runs}.values()
        ]
        args = {
            "params": params.model_dump(mode="json"),
            "rules": self._rules,
            "methods": methods,
            "benchmarks": measured,
        }
        if is_published(params, self.root):
            args["reference"] = REFERENCE.as_posix()
            raw |= {(REFERENCE / name).as_posix(): self._print(str(REFERENCE / name)) for name in FILES}
        modules = sorted({run.module for run in self.runs})
        self.latest_report = self._cell(
            "report", where, args, [self.aggregate, *scores, *comparisons, *shared], modules, raw
        )
        return self.latest_report

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
        return [cell for cell in self.cells.values() if not cell.made(self.root)]

    def needed(self) -> list[Cell]:
        """Cells that a run would make: missing ones that the report, or another needed cell, asks for."""
        found: dict[str, Cell] = {}
        stack = [self.final]
        while stack:
            cell = stack.pop()
            if cell.path in found or cell.made(self.root):
                continue
            found[cell.path] = cell
            stack += cell.inputs
        return [cell for path, cell in self.cells.items() if path in found]


def build(params: Params, root: str | Path = ".") -> Plan:
    """The plan of an experiment in a project folder. Raises params.BadSettings for settings that name unknown methods or presets."""
    return Plan(params, Path(root))
