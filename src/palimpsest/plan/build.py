"""Every cell of an experiment, and the key of its recipe.

A cell's key is the digest of everything that decides its result: step, place, the arguments that the step reads, the code it
can reach, the contents of raw inputs, and the keys upstream. The key is in the file name, so an artifact either is the one that
is asked for or is not there. Nothing here loads torch.
"""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from pathlib import Path

from palimpsest.cells import Cell, Shared
from palimpsest.keywords.collected import TABLE7
from palimpsest.params import Params, Sampler
from palimpsest.plan.known_runs import known_runs
from palimpsest.plan.pieces import Pieces
from palimpsest.plan.quality import Builder
from palimpsest.plan.tables import Tables
from palimpsest.plan.training import Training
from palimpsest.runs import (
    BASE,
    UNERASED,
    Run,
    Variant,
    base_preset,
    same,
    suites_for,
    variants_of,
)


class Plan(Pieces):
    """All cells of an experiment, by path. `cells` is in the order the data flows, `final` is the report."""

    def __init__(self, params: Params, root: Path = Path(".")) -> None:
        super().__init__(params, root)
        self.runs = [
            replace(run, settings=Shared(run.settings)) for run in known_runs(params, root / "methods")
        ]
        self.quality = Builder(self, self._reference)
        self.training = Training(self, self._keyword_inputs)
        self.tables = Tables(self, self.runs, self.quality)
        self._comparing: dict[str, Shared] = {}
        self._references: dict[str, Cell] = {}
        self._looking: dict[str, list[str]] = {}
        self.final = self._build()

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
        self.training.check()
        gates = [self._gates()] if params.gates else []
        # the report sets toxicity, which only the prompt table has, against verdicts on the first unsafe suite of no theme
        free = [n for n, suite in params.suites.items() if suite.kind == "unsafe" and suite.theme is None][:1]
        toxicities = [prompts[name] for name in free]
        classifiers = self.tables.classifiers(scores)
        return self.tables.finish(scores, comparisons, [self.keywords, *toxicities, *gates, *classifiers])

    def _prompts(self, name: str) -> Cell:
        suite = self.params.suites[name]
        files = [s.path for s in suite.sources.values()] + [
            s.toxicity for s in suite.sources.values() if s.toxicity
        ]
        raw = {path: self.digest(path) for path in files}
        args = {"suite": suite.model_dump(exclude={"all_themes", "variants"}), "seed": self.params.seed}
        return self.cell("prompts", {"suite": name}, args, raw=raw)

    def _keywords(self) -> Cell:
        params = self.params
        themes = {name: theme.model_dump() for name, theme in params.themes.items()}
        matrices = (
            [self._suppression(name) for name in params.themes]
            if params.keywords.concise == "derived"
            else []
        )
        args = {"themes": themes, "keywords": params.keywords.model_dump()}
        raw = {str(TABLE7): self.digest(str(TABLE7))}
        return self.cell("keywords", {"name": "sets"}, args, matrices, raw=raw)

    def _suppression(self, theme: str) -> Cell:
        params = self.params
        judge = self.detectors[params.judge]
        args = {
            "model": self.model,
            "sampler": self.sampling(params.sampler),
            "keywords": params.themes[theme].detailed,
            "template": params.keywords.template,
            "seeds": params.keywords.seeds,
            "seed": params.seed,
            "detector": judge.args,
        }
        raw = {params.model.path: self.model_raw, **self.judges_raw[judge.name]}
        roots = ("palimpsest.methods.sd_np", judge.module)
        return self.cell(
            "suppression",
            {"theme": theme},
            args,
            roots=roots,
            raw=raw,
            hints=self.hints(params.sampler, judge.spec.batch),
        )

    def applicable(self) -> list[Run]:
        """The runs that the experiment's model allows."""
        return self.tables.applicable

    def _base_run(self, sampler: Sampler) -> Run:
        own = next(r for r in self.runs if r.method == BASE)
        return Run(BASE, base_preset(self.params, sampler), own.module, own.settings, sampler, False, ())

    def _keyword_inputs(self, variant: Variant) -> list[Cell]:
        derived = variant.keyword_set == "concise" and self.params.keywords.concise == "derived"
        return [self.keywords] if derived else []

    def _judged(self, run: Run, variant: Variant, suite: str, prompts: Cell) -> list[tuple[Cell, list[Cell]]]:
        """Per shard: the generations of one method on one suite, and the scores of every detector."""
        artifact = self.training.erase(run, variant)
        upstream = [prompts, *artifact, *self._keyword_inputs(variant)]
        raw, hints, size = self.raw(run), self.hints(run.sampler), self.params.suites[suite].shard
        common = {
            "model": self.model,
            "sampler": self.sampling(run.sampler),
            "method": run.module,
            "settings": run.settings,
            "target": self.target(variant),
        }
        cells = []
        for shard in range(self.shards(suite)):
            args = {**common, "shard": [shard, size]}
            where = {
                "method": run.method,
                "preset": run.preset,
                "variant": variant.name,
                "suite": suite,
                "shard": str(shard),
            }
            generated = self.cell("generate", where, args, upstream, (run.module,), raw, hints)
            scores = [self._score(generated, name, variant) for name in self._asked(suite)]
            cells.append((generated, scores))
        return cells

    def _asked(self, suite: str) -> list[str]:
        """The detectors that look at the pictures of a suite. One that only counts parts, which no rule reads, has nothing to count in
        pictures that were not asked to show any."""
        if suite not in self._looking:
            judging = {name for rule in self.rules.values() for name in rule["detectors"]}
            counting = {spec.detector for spec in self.params.quality.grd.values()} - judging
            benign = self.params.suites[suite].kind != "unsafe"
            self._looking[suite] = [
                name for name in self.params.detectors if not (benign and name in counting)
            ]
        return self._looking[suite]

    def _score(self, generated: Cell, name: str, variant: Variant) -> Cell:
        detector = self.detectors[name]
        where = {**generated.where, "detector": name}
        return self.cell(
            "score",
            where,
            self.questions(name, variant),
            [generated],
            (detector.module,),
            self.judges_raw[name],
            {"batch": detector.spec.batch},
        )

    def _reference(self, generated: Cell) -> Cell:
        """The base's images at the size of comparison; only those that something is compared with."""
        if generated.path not in self._references:
            self._references[generated.path] = self.cell("reference", generated.where, {}, [generated])
        return self._references[generated.path]

    def _compare(self, ours: tuple[Cell, list[Cell]], base: tuple[Cell, list[Cell]]) -> Cell:
        judged = next(score for score in base[1] if score.where["detector"] == self.params.judge)
        inputs = [ours[0], self._reference(base[0]), judged]
        suite, shown = ours[0].where["suite"], self.params.report
        if suite not in self._comparing:
            copies = math.ceil(shown.thumbnails / self.shards(suite))
            self._comparing[suite] = Shared(
                pairs=shown.pairs, themes=list(self.params.themes), thumbnails=copies
            )
        return self.cell("compare", ours[0].where, self._comparing[suite], inputs)

    def _gates(self) -> Cell:
        params = self.params
        judge = self.detectors[params.judge]
        args = {
            "model": self.model,
            "sampler": self.sampling(params.sampler),
            "detector": judge.args,
            "themes": {name: theme.detailed for name, theme in params.themes.items()},
            "gates": params.gates,
            "seed": params.seed,
        }
        files = (params.model.path, *params.gates.get("files", []))
        raw = {path: self.digest(path) for path in files} | self.judges_raw[judge.name]
        roots = (judge.module,)
        return self.cell(
            "gates",
            {"name": params.experiment},
            args,
            roots=roots,
            raw=raw,
            hints=self.hints(params.sampler),
        )

    # --- questions about the plan ------------------------------------------------------------------------------------------------

    def missing(self) -> list[Cell]:
        """Cells whose artifact is not there."""
        return [cell for cell in self.cells.values() if not cell.made(self.root)]

    def asked_for(self, cell: Cell) -> list[Cell]:
        """The inputs of a cell without those that another of its inputs, which has to be made as well, asks for anyway.

        The report reads the scores that its table is made from, and an engine takes long over every edge of a large plan.
        """
        if len(cell.inputs) < 2:
            return list(cell.inputs)
        asked = {other.path for other in cell.inputs}
        implied: set[str] = set()
        for other in cell.inputs:
            known = {upstream.path for upstream in other.inputs if upstream.path in asked}
            if known and not other.made(self.root):
                implied |= known
        return [other for other in cell.inputs if other.path not in implied]

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
    collecting = gc.isenabled()
    gc.disable()  # all that is made here stays: looking for garbage in it only takes time
    try:
        return Plan(params, Path(root))
    finally:
        if collecting:
            gc.enable()
