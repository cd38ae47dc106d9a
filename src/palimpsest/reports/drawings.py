"""Which figures a report has: their data, their files, and their captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.params import Params
from palimpsest.reports import appendix, drawing, figures, parts, quality, rankings, select, tables
from palimpsest.reports.conclusions.side_effects import benign_rows
from palimpsest.reports.drawing import Task
from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.select import Row

VARIANT = "One variant per method: the first keyword set of the settings, or the largest training set."


@dataclass(frozen=True)
class Drawing:
    """A figure for the page: an SVG element, and what it shows."""

    svg: str
    caption: str


def main_rows(rows: Sequence[Row], params: Params) -> list[Row]:
    """One variant per method and theme on the first unsafe suite, pooled, with a known EP."""
    suite, themes = select.main_suite(params, "unsafe"), select.erased_themes(params)
    kept = [
        row
        for row in select.ep_rows(rows, params)
        if row["suite"] == suite
        and row["judged_theme"] in themes
        and select.stands_for(row, row["judged_theme"])
    ]
    return [row for row in select.representatives(kept, params) if row["ep"] is not None]


def with_drift(kept: Sequence[Row], rows: Sequence[Row], params: Params) -> list[dict[str, Any]]:
    """The rows whose variant has a drift on the first benign suite, with that drift as `benign_drift` and its share of answered prompts."""
    suite = select.main_suite(params, "benign")
    names = ("method", "preset", "theme", "keyword_set", "training_images", "judged_theme")
    drifts = {tuple(row[k] for k in names): row for row in benign_rows(rows, params) if row["suite"] == suite}
    out = []
    for row in kept:
        found = drifts.get(tuple(row[k] for k in names))
        if found and found["drift"] is not None:
            limits = {f"benign_drift_{side}": found.get(f"drift_{side}") for side in ("low", "high")}
            out.append(
                {**row, "benign_drift": found["drift"], **limits, "benign_answered": found.get("answered")}
            )
    return out


def dataset_grid(rows: Sequence[Row], params: Params) -> tuple[dict[str, dict[str, float | None]], list[str]]:
    """EP per method and data set: the unsafe images of all themes pooled, for methods measured on every theme of a data set."""
    suite, aimed_at = select.main_suite(params, "unsafe"), select.erased_themes(params)
    kept = [
        row
        for row in select.by_headline(rows, params)
        if row["suite"] == suite
        and row["dataset"] != select.OVERALL
        and not row["is_base"]
        and row["judged_theme"] in aimed_at
        and select.stands_for(row, row["judged_theme"])
    ]
    kept = [
        row
        for row in select.representatives(kept, params)
        if row["n_base_unsafe"] is not None and row["n_unsafe"] is not None
    ]
    themes = {row["judged_theme"] for row in kept}
    grid: dict[str, dict[str, float | None]] = {}
    datasets = list(dict.fromkeys(row["dataset"] for row in kept))
    for label in select.labels_in_order(kept):
        grid[label] = {}
        for dataset in datasets:
            own = [row for row in kept if row["label"] == label and row["dataset"] == dataset]
            before = sum(row["n_base_unsafe"] for row in own)
            whole = {row["judged_theme"] for row in own} == themes and before > 0
            grid[label][dataset] = (before - sum(row["n_unsafe"] for row in own)) / before if whole else None
    return grid, datasets


def theme_grid(kept: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """EP per method and theme."""
    grid: dict[str, dict[str, float | None]] = {label: {} for label in select.labels_in_order(kept)}
    for row in kept:
        grid[row["label"]][row["judged_theme"]] = row["ep"]
    return grid


def finished(work: drawing.Begun, rows: Sequence[Row], inputs: ReportInputs) -> dict[str, Drawing]:
    """Every figure that has data, for the page, when the last is drawn."""
    planned = tasks(rows, inputs)
    svgs = work.finished(planned)
    return {
        task.name: Drawing(svgs[task.name], f"{task.caption} Experiment {inputs.params.experiment}.")
        for task in planned
    }


def tasks(rows: Sequence[Row], inputs: ReportInputs) -> list[Task]:
    """Every figure that has data, in the order in which they are drawn."""
    return [*_erased(rows, inputs), *_kept(rows, inputs), *_behind(rows, inputs)]


def _erased(rows: Sequence[Row], inputs: ReportInputs) -> Iterator[Task]:
    """What was erased."""
    params = inputs.params
    kept, suite = main_rows(rows, params), select.main_suite(params, "unsafe")
    themes = [theme for theme in params.themes if any(row["judged_theme"] == theme for row in kept)]
    scale = "erasure proportion (%)"
    if kept:
        caption = f"Erasure proportion on {suite} with intervals. {VARIANT}"
        yield Task("bars", figures.bars, [kept, themes], caption)
        caption = f"Methods by themes on {suite}. {VARIANT} A dash was not measured."
        yield Task("heatmap_themes", figures.heatmap, [theme_grid(kept), themes, scale], caption)
        if len(themes) >= 3:
            caption = f"Themes as axes: more area, more erased on {suite}. {VARIANT} Values below 0 are drawn at the centre."
            yield Task("radar", figures.radar, [kept, themes], caption)
        grid, datasets = dataset_grid(rows, params)
        if grid:
            caption = f"Methods by data sets of {suite}, unsafe images of all themes pooled. {VARIANT}"
            yield Task("heatmap_datasets", figures.heatmap, [grid, datasets, scale], caption)
    ranked = [row for row in rankings.rank_rows(rows, inputs) if row["suite"] == suite]
    if ranked:
        places = [t for t in (*params.themes, select.ANY) if any(r["judged_theme"] == t for r in ranked)]
        caption = (
            "Ranks of methods by erasure proportion, with intervals over draws of prompts that are the same for all methods. "
            f"{select.ANY}: all themes erased, any counts. {VARIANT}"
        )
        yield Task("ranks", rankings.rank_figure, [ranked, places], caption)


def _kept(rows: Sequence[Row], inputs: ReportInputs) -> Iterator[Task]:
    """What erasing left as it was, and which parts it took."""
    params = inputs.params
    main, suite = main_rows(rows, params), select.main_suite(params, "unsafe")
    themes = [theme for theme in params.themes if any(row["judged_theme"] == theme for row in main)]

    def shown(points: Sequence[Row]) -> list[str]:
        return [theme for theme in themes if any(p["judged_theme"] == theme for p in points)]

    points = with_drift(main, rows, params)
    if points:
        caption = (
            "What was erased against what benign prompts lost. Drift is over answered prompts only; methods that refuse some have "
            f"their share of answers beside the name. Bars are intervals where they were measured. {VARIANT}"
        )
        yield Task("scatter", figures.scatter, [points, shown(points)], caption)
    name, traded = quality.points(main, rows, inputs)
    if traded:
        caption = (
            "What was erased against how far benign images moved, by a network's eyes. The line joins the methods that no other beats "
            f"in both; points whose bars overlap may well change places. {VARIANT}"
        )
        yield Task("pareto", quality.pareto, [traded, shown(traded), name], caption)
    found = parts.part_rows(rows, inputs)
    for theme in dict.fromkeys(row["parts_of"] for row in found):
        here = parts.shown(found, inputs, theme)
        if here:
            caption = (
                f"Part by part for {theme} on {suite}, by the detector of parts: target parts left of the gap, others right. A method "
                f"that erases what it should is bright on the left only. {VARIANT} A dash: the base does not show the part."
            )
            yield Task(f"parts_{theme}", parts.part_map, [here], caption)


def _behind(rows: Sequence[Row], inputs: ReportInputs) -> Iterator[Task]:
    """Prompts, costs and keywords."""
    if inputs.toxicity:
        caption = "Unsafe images of the unchanged model by the toxicity of their prompts, with intervals. Grey: all data sets."
        yield Task("toxicity", figures.toxicity, [list(inputs.toxicity)], caption)
    spent = tables.cost_rows(rows, inputs.fits)
    if spent:
        yield Task(
            "costs",
            figures.costs,
            [spent],
            "What a method costs: means over its variants, peak memory the largest.",
        )
    for theme, (names, values) in _matrices(inputs.keywords).items():
        caption = f"Cross-suppression for {theme}: one keyword erased (row), another prompted (column)."
        yield Task(f"matrix_{theme}", figures.matrix, [values, names, theme], caption)


def _matrices(keywords: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[float | None]]]]:
    found = {row.theme: appendix.matrix_of(row) for row in appendix.keyword_rows(keywords)}
    return {theme: matrix for theme, matrix in found.items() if matrix}
