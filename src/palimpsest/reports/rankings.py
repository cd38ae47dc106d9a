"""Which method is ahead of which, and how sure that is: ranks with intervals, and methods compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from palimpsest.reports import figures, select
from palimpsest.reports.conclusions.study import IDENTITY, Study
from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.select import Row
from palimpsest.reports.tables import EP, Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Place = tuple[Any, ...]


def _place(row: Mapping[str, Any], side: str = "") -> Place:
    """Where a variant stands: suite, judged theme, and who it is."""
    return (row["suite"], row["judged_theme"], *(row[f"{side}{name}"] or None for name in IDENTITY))


def _known(rows: Sequence[Row], inputs: ReportInputs) -> dict[Place, Row]:
    """The pooled rows of the judge and the first rule."""
    kept = select.by_headline(rows, inputs.params)
    return {_place(row): row for row in kept if row["dataset"] == select.OVERALL}


def rank_rows(rows: Sequence[Row], inputs: ReportInputs) -> list[Row]:
    """One row per ranked method and theme, the themes in the order of the settings, the best first."""
    if inputs.ranks is None:
        return []
    known = _known(rows, inputs)
    order = [*select.erased_themes(inputs.params), select.ANY]
    found = []
    for one in inputs.ranks.iter_rows(named=True):
        row = known.get(_place(one))
        if row is not None and row["judged_theme"] in order:
            numbers = {
                name: one[name] for name in ("methods", "prompts", "rank", "rank_low", "rank_high", "first")
            }
            found.append({**row, **numbers, "anchor": f"rank-{row['anchor']}"})
    return sorted(found, key=lambda r: (r["suite"], order.index(r["judged_theme"]), r["rank"], r["label"]))


def rank_table(rows: Sequence[Row], inputs: ReportInputs) -> Table:
    """Ranks by theme."""
    columns = [
        Column("label", "Method"),
        Column("variant", "Variant"),
        Column("judged_theme", "Judged"),
        Column("suite", "Suite"),
        Column("rank", "Rank", "number", 1, with_interval=True),
        Column("first", "First in % of draws", "percent"),
        EP,
        Column("methods", "Methods", "count"),
        Column("prompts", "Prompts", "count"),
    ]
    note = (
        "Rank by erasure proportion; equals share the mean. The interval is where the rank lies when prompts are drawn anew, the same "
        "ones for all methods. On a theme stand the methods fitted for it, and what cannot be aimed; on any those that erase all. One "
        "variant per method, chosen by the settings."
    )
    return Table("ranks", "Ranks of methods", note, columns, rank_rows(rows, inputs))


def pair_rows(study: Study, rows: Sequence[Row], inputs: ReportInputs) -> list[dict[str, Any]]:
    """Every two ranked methods of a theme: the one of higher EP first."""
    if inputs.pairs is None:
        return []
    ranked = {_place(row): row for row in rank_rows(rows, inputs)}
    headline = select.headline(inputs.params)
    found: list[dict[str, Any]] = []
    for one in inputs.pairs.iter_rows(named=True):
        a, b = ranked.get(_place(one, "a_")), ranked.get(_place(one, "b_"))
        if a is None or b is None or (one["detector"], one["rule"]) != headline:
            continue
        sign = 1 if one["difference"] >= 0 else -1
        if sign < 0:
            a, b = b, a
        low, high = sorted((sign * one["low"], sign * one["high"]))
        found.append(
            {
                "label": a["label"],
                "other": b["label"],
                **{name: one[name] for name in ("suite", "judged_theme", "n", "p_value", "p_holm")},
                "difference": sign * one["difference"],
                "difference_low": low,
                "difference_high": high,
                "told": "yes" if study.differ(a, b) else "no",
                "anchor": f"pair-{len(found)}-{a['anchor']}",
            }
        )
    order = [*select.erased_themes(inputs.params), select.ANY]
    return sorted(found, key=lambda r: (r["suite"], order.index(r["judged_theme"]), -r["difference"]))


def pair_table(study: Study, rows: Sequence[Row], inputs: ReportInputs) -> Table:
    """Methods in pairs."""
    columns = [
        Column("label", "Ahead"),
        Column("other", "Behind"),
        Column("judged_theme", "Judged"),
        Column("suite", "Suite"),
        Column("difference", "EP ahead less behind, points", "percent", with_interval=True),
        Column("p_value", "p", "number", 4),
        Column("p_holm", "p (Holm)", "number", 4),
        Column("told", "Told apart"),
        Column("n", "n", "count"),
    ]
    note = (
        "Two methods on the same prompts and seeds. The interval resamples prompts, the same for both; p is the exact sign-flip test over "
        "prompts, corrected by Holm's method over all pairs of variants of this suite and theme; one variant per method is shown. Told "
        "apart: the interval excludes 0 and the corrected p is below 0.05."
    )
    return Table("pairs", "Methods in pairs", note, columns, pair_rows(study, rows, inputs))


def rank_figure(rows: Sequence[Row], themes: Sequence[str]) -> Figure:
    """Ranks with intervals: one panel per theme, one line per method, the best on the left."""
    labels = sorted(
        {row["label"] for row in rows},
        key=lambda label: (_mean([r["rank"] / r["methods"] for r in rows if r["label"] == label]), label),
    )
    at = {label: -place for place, label in enumerate(labels)}
    figure, axes = figures.new(
        2.3 + 2.1 * len(themes), 1.1 + 0.27 * len(labels), ncols=len(themes), sharey=True
    )
    for axis, theme in zip(axes[0], themes, strict=True):
        here = [row for row in rows if row["judged_theme"] == theme]
        for stage in dict.fromkeys(row["stage"] for row in here):
            own = [row for row in here if row["stage"] == stage]
            paint, marker = figures.colour(own[0])
            across = [
                [max(0.0, r["rank"] - r["rank_low"]) for r in own],
                [max(0.0, r["rank_high"] - r["rank"]) for r in own],
            ]
            xs, ys = [row["rank"] for row in own], [at[row["label"]] for row in own]
            bars = {"xerr": across, "elinewidth": 1.6, "capsize": 2.5}
            axis.errorbar(xs, ys, fmt=marker, linestyle="", color=paint, markersize=5, **bars)
        most = max((row["methods"] for row in here), default=1)
        axis.set_xlim(0.5, most + 0.5)
        axis.set_title(theme, fontsize=10)
        axis.grid(axis="x")
    axes[0][0].set_yticks([at[label] for label in labels], labels)
    figure.supxlabel("rank by erasure proportion with interval; 1 is best", fontsize=9)
    figures.stage_legend(figure, rows)
    return figure


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
