"""The report: one self-contained page, its figures and tables as files, and the headline numbers as JSON."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from palimpsest import store
from palimpsest.params import Params
from palimpsest.reports import (
    appendix,
    cards,
    classifiers,
    drawings,
    drill,
    layouts,
    pairs,
    parts,
    quality,
    rankings,
    select,
    tables,
    verdict_tables,
)
from palimpsest.reports.conclusions import own, registry
from palimpsest.reports.conclusions.levels import grd_rows, measured
from palimpsest.reports.conclusions.study import Study
from palimpsest.reports.evidence import Takeaway
from palimpsest.reports.inputs import ReportInputs, check, is_micro
from palimpsest.reports.select import Row
from palimpsest.reports.tables import Link, Table

TEMPLATES = Path(__file__).parent / "templates"
# What the template asks for; a report without data for one leaves it out.
TABLES = (
    "levels",
    "guidance",
    "toxicity",
    "beside",
    "ep",
    "ranks",
    "pairs",
    "all_themes",
    "by_theme_keywords",
    "by_theme_images",
    "fixed",
    "summary",
    "datasets",
    "rules",
    "benign",
    "quality",
    "grd",
    "parts",
    "base",
    "cost",
    "classifiers",
    "reliability",
    "agreement",
    "failures",
    "gates",
    "benchmarks",
    "environment",
)
FIGURES = (
    "toxicity",
    "bars",
    "ranks",
    "heatmap_themes",
    "heatmap_datasets",
    "radar",
    "scatter",
    "pareto",
    "costs",
)
BANNER = "Micro world: a small model that this project trained itself; not comparable with published numbers."


@dataclass(frozen=True)
class Content:
    """What the template lays out."""

    tables: Sequence[Table]
    figures: Mapping[str, drawings.Drawing]
    grids: Sequence[pairs.Grid]
    takeaways: Sequence[tuple[str, Sequence[Takeaway]]]
    link: Link | None = None


def _thresholds(params: Params) -> str:
    """What scores have to exceed under the first rule, in words."""
    from palimpsest.detectors.rules import threshold

    rule = params.rules[select.headline(params)[1]]
    values = {theme: threshold(theme, rule) for theme in params.themes}
    if len(set(values.values())) == 1:
        return f"threshold {next(iter(values.values())):g}"
    return "thresholds " + ", ".join(f"{theme} {value:g}" for theme, value in values.items())


def environment() -> jinja2.Environment:
    """Templates with escaping of everything that is not written in a template; unknown names are errors."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(cells=tables.cells, percent_range=percent_range)
    return env


def percent_range(evidence: Any) -> str:
    """A number of a takeaway with its interval and n."""
    scale, digits = (100, 1) if evidence.unit == "%" else (1, 0 if float(evidence.value).is_integer() else 3)
    unit = f" {evidence.unit}" if evidence.unit else ""
    text = tables.minus(evidence.value * scale, digits) + unit
    if evidence.low is not None and evidence.high is not None:
        text += f" ({tables.minus(evidence.low * scale, digits)} to {tables.minus(evidence.high * scale, digits)})"
    return text + (f", n = {evidence.n}" if evidence.n is not None else "")


def intro(inputs: ReportInputs, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What was run, as name and value."""
    params, sampler = inputs.params, inputs.params.sampler
    sizes: dict[str, int] = {}
    for row in rows:
        if row["dataset"] == select.OVERALL and row["n"]:
            sizes[row["suite"]] = max(sizes.get(row["suite"], 0), row["n"])
    suites = [
        f"{name} ({suite.kind}, n = {sizes.get(name, 'unknown')})" for name, suite in params.suites.items()
    ]
    detector, rule = select.headline(params)
    revision = f" at {params.model.revision}" if params.model.revision else ""
    methods = {row["label"] for row in rows if not row["is_base"]}
    facts = [
        ("Experiment", params.experiment),
        (
            "Model",
            f"{params.model.path}{revision}, {params.model.resolution} × {params.model.resolution} pixels",
        ),
        ("Sampler", f"{sampler.name}, {sampler.steps} steps, guidance {sampler.guidance:g}, {sampler.dtype}"),
        ("Seeds", f"base seed {params.seed}; an image's seed hangs on its prompt, never on the method"),
        ("Methods", f"{len(methods)}, erasing {', '.join(params.variants.themes)}"),
        ("Suites", "; ".join(suites)),
        ("Judge", f"{detector}, rule {rule} ({_thresholds(params)})"),
        (
            "Intervals",
            f"{100 * params.statistics.confidence:g} %, {params.statistics.resamples} resamples over prompts",
        ),
        ("Commit", inputs.commit),
    ]
    return [*facts, ("Date of the commit", inputs.date)] if inputs.date else facts


def metrics(rows: Sequence[Row], params: Params, study: Study) -> dict[str, float]:
    """Flat headline numbers: EP and GRD per variant and theme, measures on benign prompts, base rates, counts of rows by status."""
    out: dict[str, float] = {}

    def add(kind: str, row: Row, key: str, last: str) -> None:
        if row.get(key) is not None:
            parts = [
                row[name] for name in ("method", "preset", "theme", "keyword_set", "training_images", "suite")
            ]
            out[".".join([kind, *(str(part) for part in (*parts, last) if part)])] = round(row[key], 6)

    for row in select.ep_rows(rows, params):
        add("ep", row, "ep", row["judged_theme"])
    for row in grd_rows(study):
        add("grd", row, "grd", row["judged_theme"])
    for measure in study.measures:
        for row in measured(measure.key)(study):
            add("benign", row, measure.key, measure.key)
    for base in tables.base_table(rows, params).rows:
        if base["dataset"] == select.OVERALL:
            out[f"base_unsafe.{base['suite']}.{base['judged_theme']}"] = round(base["rate"], 6)
    for row in rows:
        key = f"rows.{row['status']}"
        out[key] = out.get(key, 0) + 1
    return out


def all_tables(rows: Sequence[Row], inputs: ReportInputs, study: Study) -> list[Table]:
    """Every table of the page that has rows, in its order."""
    params = inputs.params
    found = [
        verdict_tables.levels_table(study), verdict_tables.guidance_table(study),
        verdict_tables.toxicity_table(inputs.toxicity), verdict_tables.beside_table(study.rows, params, inputs.reference),
        tables.ep_table(rows, params), rankings.rank_table(rows, inputs),
        rankings.pair_table(study, rows, inputs), *layouts.layouts(rows, params), tables.dataset_table(rows, params),
        tables.rules_table(rows, params),
        tables.benign_table(rows, params), quality.quality_table(rows, inputs), quality.grd_table(rows, inputs),
        parts.part_table(rows, inputs),
        tables.base_table(rows, params), tables.cost_table(rows, inputs),
        *classifiers.tables_of(inputs.classifiers, params),
        tables.failure_table(rows), appendix.gates_table(inputs.gates), appendix.benchmark_table(inputs.benchmarks),
        appendix.environment_table(inputs.environments),
    ]  # fmt: skip
    return [table for table in found if table is not None and table.rows]


def render(inputs: ReportInputs, rows: Sequence[Row], content: Content) -> str:
    """The page as HTML."""
    params = inputs.params
    env = environment()
    title = params.report.title or f"Concept erasure: {params.experiment}"
    return env.get_template("index.html.j2").render(
        title=title,
        banner=BANNER if is_micro(params) else "",
        micro=is_micro(params),
        blur=params.report.blur or not is_micro(params),
        experiment=params.experiment,
        facts=intro(inputs, rows),
        tables=dict.fromkeys(TABLES) | {table.id: table for table in content.tables},
        figures=dict.fromkeys(FIGURES)
        | {name: Figured(Markup(found.svg), found.caption) for name, found in content.figures.items()},
        grids=content.grids,
        link=content.link,
        takeaways=content.takeaways,
        concise=appendix.keyword_rows(inputs.keywords),
        methods=[appendix.method_facts(info) for info in inputs.methods],
        mixed=appendix.mixed(inputs.environments),
        glossary=appendix.GLOSSARY,
        css=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
    )


def render_images(inputs: ReportInputs, drilled: drill.Drill) -> str:
    """The page that shows the images behind a number, as HTML. drilled: the cells that one can choose from."""
    from palimpsest.sheets import ACROSS, SIDE

    params = inputs.params
    texts = {
        name: Markup((TEMPLATES / f"{name}").read_text(encoding="utf-8"))
        for name in ("style.css", "images.css", "images.js")
    }
    return (
        environment()
        .get_template("images.html.j2")
        .render(
            title=params.report.title or f"Concept erasure: {params.experiment}",
            banner=BANNER if is_micro(params) else "",
            blur=params.report.blur or not is_micro(params),
            experiment=params.experiment,
            titles=drilled.titles,
            side=SIDE,
            across=ACROSS,
            css=texts["style.css"],
            images_css=texts["images.css"],
            js=texts["images.js"],
        )
    )


@dataclass(frozen=True)
class Figured:
    """A figure as the template takes it."""

    svg: Markup
    caption: str

    @property
    def described(self) -> str:
        """The caption as plain text for screen readers."""
        return html.unescape(self.caption)


def write_report(inputs: ReportInputs, folder: Path) -> None:
    """Write index.html, images.html with cells/ and sheets/, figures/, tables/, metrics.json, takeaways.json and conclusions.json into
    `folder`, made when missing.

    Equal inputs give equal bytes. Raises ValueError when `cells` lacks columns, CorruptArtifact for damaged images or scores.
    """
    check(inputs)
    folder = Path(folder)
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = select.rows_of(inputs)
    detector, _ = select.headline(inputs.params)
    compared, scored = pairs.files(inputs.comparisons), pairs.files(inputs.scores, detector)
    grids = pairs.grids(rows, inputs.params, compared, scored)
    bases = drill.bases(inputs.comparisons, rows, scored)
    drilled = drill.write(rows, inputs.params, compared, scored, bases, folder)
    study = own.study_of(inputs, rows)
    sentences = registry.by_section(study)
    content = Content(
        all_tables(rows, inputs, study),
        drawings.all_drawings(rows, inputs, folder / "figures"),
        grids,
        sentences,
        drilled.link,
    )
    for table in content.tables:
        (folder / "tables" / f"{table.id}.csv").write_text(tables.as_csv(table), encoding="utf-8")
    inputs.cells.write_csv(folder / "tables" / "cells.csv")
    own.write_tables(inputs, folder)
    store.write_json(metrics(rows, inputs.params, study), folder / "metrics.json")
    store.write_json(
        registry.as_json([one for _, found in sentences for one in found]), folder / "takeaways.json"
    )
    store.write_json(registry.conclusions(study), folder / "conclusions.json")
    cards.write(inputs, rows, folder)
    (folder / drill.PAGE).write_text(render_images(inputs, drilled), encoding="utf-8")
    with store.atomic(folder / "index.html") as part:
        part.write_text(render(inputs, rows, content), encoding="utf-8")
