"""The tables about the judges: how right they are by labels, whether scores can be read as probabilities, how far raters agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.params import Params
from palimpsest.reports import select
from palimpsest.reports.tables import Column, Table

WHAT = (
    Column("detector", "Detector"), Column("theme", "Theme"), Column("images", "Images"), Column("labels", "Labels"),
)  # fmt: skip
METRICS = (
    Column("accuracy", "Accuracy %", "percent", with_interval=True),
    Column("precision", "Precision %", "percent", with_interval=True),
    Column("recall", "Recall %", "percent", with_interval=True),
    Column("f1", "F1 %", "percent", with_interval=True),
    Column("mcc", "MCC", "number", 3, with_interval=True),
    Column("auroc", "AUROC", "number", 3, with_interval=True),
    Column("ece", "Calibration error", "number", 3, with_interval=True),
)
COUNTS = (
    Column("n", "n", "count"), Column("n_shown", "Labelled so", "count"), Column("tp", "TP", "count"), Column("fp", "FP", "count"),
    Column("fn", "FN", "count"), Column("tn", "TN", "count"),
)  # fmt: skip
COEFFICIENTS = (
    Column("fleiss_kappa", "Fleiss' kappa", "number", 2, with_interval=True),
    Column("krippendorff_alpha", "Krippendorff's alpha", "number", 2, with_interval=True),
    Column("gwet_ac1", "Gwet's AC1", "number", 2, with_interval=True),
)


def tables_of(found: Mapping[str, Any] | None, params: Params) -> list[Table]:
    """The tables of this section; none of them when nothing was labelled."""
    if not found:
        return []
    rows = [
        {**row, "anchor": select.anchor({**row, "judged_theme": row["theme"], "dataset": row["images"]})}
        for row in found["rows"]
    ]
    people = found.get("people") or {}
    return [
        classifier_table(rows, params, people),
        reliability_table(rows, params),
        agreement_table(found["agreement"]),
    ]


def classifier_table(rows: Sequence[Mapping[str, Any]], params: Params, people: Mapping[str, Any]) -> Table:
    """Every detector, rule, theme and kind of labels."""
    several = len({row["rule"] for row in rows}) > 1
    columns = [*WHAT, *([Column("rule", "Rule")] if several else []), *METRICS, *COUNTS]
    order = {name: at for at, name in enumerate([*params.rules])}
    themes = {name: at for at, name in enumerate([*params.themes, select.ANY])}
    ordered = sorted(
        rows,
        key=lambda row: (
            order.get(row["rule"], len(order)),
            row["labels"],
            row["images"],
            row["detector"],
            themes.get(row["theme"], len(themes)),
        ),
    )
    note = (
        "Accuracy, recall and F1 are the columns of the benchmark's table of classifiers. Positive is an image that shows the theme. "
        "Calibration error: how far scores, read as probabilities, are from the shares that show the theme. "
        "Exact labels come from held-out renders, whose content is known; people's are the majority of raters, or what was decided. "
        "Renders are cleaner than generated images: expect a judge to be right more often on them."
    )
    if people.get("images"):
        note += f" People labelled {people['images']} images; scores of {people['matched']} of them are part of this experiment."
    return Table("classifiers", "How right the detectors are", note, columns, ordered)


def reliability_table(rows: Sequence[Mapping[str, Any]], params: Params) -> Table:
    """Bins of scores under the first rule, one line per bin."""
    _, rule = select.headline(params)
    lines = [
        {
            **{name: row[name] for name in ("detector", "theme", "images", "labels")},
            **line,
            "bin": f"{line['low']:.1f} to {line['high']:.1f}",
            "anchor": f"{row['anchor']}-bin-{at}",
        }
        for row in rows
        if row["rule"] == rule
        for at, line in enumerate(row["reliability"] or ())
    ]
    columns = [
        *WHAT, Column("bin", "Score"), Column("mean_score", "Mean score", "number", 3),
        Column("rate", "Show the theme %", "percent", with_interval=True), Column("n", "n", "count"),
    ]  # fmt: skip
    note = "Where the judge says 0.8, eight images in ten should show the theme. Bins without images are left out."
    return Table("reliability", "Reliability of the scores", note, columns, lines)


def agreement_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """How far raters agree, per theme."""
    lines = [{**row, "anchor": f"agreement-{row['theme']}"} for row in rows]
    columns = [
        Column("theme", "Theme"), *COEFFICIENTS, Column("images", "Images", "count"), Column("raters", "Raters", "count"),
        Column("disputed", "Opposite answers", "count"), Column("decided", "Of these decided", "count"),
        Column("unsure", "Unsure answers", "count"),
    ]  # fmt: skip
    note = (
        "Agreement beyond chance; 1 is full agreement, 0 what chance gives. Unsure counts as no answer. Kappa is over the images that "
        "everybody answered. Where a theme is rare, kappa and alpha fall although raters hardly disagree; AC1 does not."
    )
    return Table("agreement", "How far raters agree", note, columns, lines)
