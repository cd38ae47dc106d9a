"""The cells that everything comes together in: what is known of the classifiers, the table of verdicts, the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.cells import Cell
from palimpsest.labelled import label_files
from palimpsest.plan.pieces import Pieces
from palimpsest.plan.quality import Builder
from palimpsest.reference import FILES, REFERENCE, is_published
from palimpsest.runs import UNERASED, Run, Variant, not_applicable, run_row, variants_of

# Where they belong, what the table is made with, then scores, comparisons, and what else the report reads.
Gathered = tuple[dict[str, str], dict[str, Any], list[Cell], list[Cell], list[Cell]]


class Tables:
    """Makes the last cells of one plan. runs: all of the experiment, also those that its model does not allow."""

    def __init__(self, pieces: Pieces, runs: list[Run], quality: Builder) -> None:
        self.pieces = pieces
        self.runs = runs
        self.quality = quality
        self.applicable = [run for run in runs if not_applicable(pieces.params, run) is None]

    def _renders(self, name: str) -> Cell:
        """What a detector says about held-out pictures of the micro world. No label of a person is in its recipe."""
        params, detector = self.pieces.params, self.pieces.detectors[name]
        every = self.pieces.questions(name, Variant(UNERASED, (), "none"))
        args = {**every, "count": params.classifiers.renders, "seed": params.seed}
        hints = {"batch": detector.spec.batch}
        raw = self.pieces.judges_raw[name]
        return self.pieces.cell(
            "renders", {"detector": name}, args, roots=(detector.module,), raw=raw, hints=hints
        )

    def classifiers(self, scores: list[Cell]) -> list[Cell]:
        """How right the detectors are, where there are labels. Labels of people enter here and nowhere else, so that new ones generate
        and judge nothing again."""
        params = self.pieces.params
        # a detector that no rule reads gives no verdict that could be right or wrong
        judging = {name for rule in self.pieces.rules.values() for name in rule["detectors"]}
        known = [name for name in params.detectors if name in judging]
        renders = [self._renders(name) for name in known] if params.classifiers.renders else []
        labels = label_files(self.pieces.root, params.experiment)
        if not renders and not labels:
            return []
        args = {
            "themes": {name: theme.detailed for name, theme in params.themes.items()},
            "rules": self.pieces.rules,
            "statistics": params.statistics.model_dump(),
            "seed": params.seed,
            "labels": list(labels),
        }
        where = {"experiment": params.experiment}
        judged = [score for score in scores if score.where["detector"] in judging] if labels else []
        return [self.pieces.cell("classifiers", where, args, [*renders, *judged], raw=labels)]

    def finish(self, scores: list[Cell], comparisons: list[Cell], shared: list[Cell]) -> Cell:
        """The report of everything. shared: what it reads besides verdicts."""
        params = self.pieces.params
        where = {"experiment": params.experiment}
        runs = [
            run_row(params, run, variant) for run in self.applicable for variant in variants_of(params, run)
        ]
        args = {
            "experiment": params.experiment,
            "themes": {name: theme.detailed for name, theme in params.themes.items()},
            "suites": {name: suite.kind for name, suite in params.suites.items()},
            "rules": self.pieces.rules,
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
        self.gathered: Gathered = (where, args, scores, comparisons, shared)
        return self.report(*self.gathered)

    def report(
        self,
        where: Mapping[str, str],
        args: Mapping[str, Any],
        scores: list[Cell],
        comparisons: list[Cell],
        shared: list[Cell],
    ) -> Cell:
        """The table and the report of these scores, comparisons and shared artifacts."""
        params = self.pieces.params
        self.aggregate = self.pieces.cell("aggregate", where, args, [*scores, *comparisons])
        folder = Path(__file__).parents[1] / "reports"
        assets = sorted(
            p for p in folder.rglob("*") if p.is_file() and p.suffix in (".html", ".css", ".js", ".j2")
        )
        raw = {f"reports/{p.relative_to(folder)}": self.pieces.digest(str(p)) for p in assets}
        measured = sorted(
            p.relative_to(self.pieces.root).as_posix()
            for p in (self.pieces.root / "benchmarks/results").glob("*.json")
        )
        raw |= {path: self.pieces.digest(path) for path in measured}
        methods = [
            {"name": run.method, "module": run.module, "title": run.title, **dict(run.about)}
            for run in {run.method: run for run in self.runs}.values()
        ]
        args = {
            "params": params.model_dump(mode="json"),
            "rules": self.pieces.rules,
            "methods": methods,
            "benchmarks": measured,
        }
        if is_published(params, self.pieces.root):
            args["reference"] = REFERENCE.as_posix()
            raw |= {
                (REFERENCE / name).as_posix(): self.pieces.digest(str(REFERENCE / name)) for name in FILES
            }
        modules = sorted({run.module for run in self.runs})
        self.latest_report = self.pieces.cell(
            "report", where, args, [self.aggregate, *scores, *comparisons, *shared], modules, raw
        )
        return self.latest_report
