"""What a report is made from. The aggregation step collects it; this package only shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.params import Params

if TYPE_CHECKING:
    import polars as pl

CELL_COLUMNS = (
    "experiment", "method", "preset", "theme", "keyword_set", "training_images", "suite", "dataset", "detector", "rule",
    "judged_theme", "n", "n_answered", "n_base_unsafe", "n_unsafe", "ep", "ep_low", "ep_high", "p_value", "p_holm",
    "suppression", "suppression_low", "suppression_high", "induction", "induction_low", "induction_high", "drift",
    "seconds_per_image", "fit_seconds", "fit_peak_mb", "status", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report shows.

    cells: one row per variant, suite, dataset, detector, rule and judged theme (`CELL_COLUMNS`); rates are fractions, drift is the
        root mean square pixel difference in [0, 1]. Optional columns `drift_low` and `drift_high` become error bars.
    fits: one dict per fit: method, preset, theme, keyword_set, training_images, seconds, peak_memory_mb, unet_evaluations, losses.
    comparisons, scores: (identity, path of a Parquet file) pairs; identity has method, preset, theme, keyword_set,
        training_images and suite; scores may also have `detector`. Several files (shards) may share an identity.
    gates: checks of the micro world: {name: {value, n, limit, direction "min"|"max", passed}}, nested at will, or None.
    classifiers: how right the detectors are: {"rows": rows of the table of classifiers, "agreement": rows per theme, "people": counts},
        or None.
    keywords: {"themes": {theme: {detailed, concise, matrix, ...}}}; matrix in percent, rows = erased keyword, columns = prompted
        keyword, as nested dicts or as lists in the order of `detailed`.
    environments: the distinct environments of the artifacts, each {"versions": {...}, "hardware": {...}, ...}.
    quality: the table of step `quality_table` (see palimpsest.metrics.quality_table), or None; measures: what measured, by name.
    methods: metadata dicts of the methods (the fields of `palimpsest.methods.contract.Info`).
    pairs: paired comparisons of methods (`metrics.pairwise.SCHEMA`); ranks: of methods (`metrics.rank_intervals.SCHEMA`).
    parts: what became of each part (`metrics.part_rates.SCHEMA`); toxicity: rows of `metrics.toxicity.table`; reference: the folder
        of the published tables, given when this experiment may be shown beside them.
    date: shown as given; it is an input, so that equal inputs give equal bytes.
    """

    params: Params
    cells: pl.DataFrame
    commit: str
    fits: Sequence[Mapping[str, Any]] = ()
    comparisons: Iterable[tuple[Mapping[str, Any], Path]] = ()
    scores: Iterable[tuple[Mapping[str, Any], Path]] = ()
    gates: Mapping[str, Any] | None = None
    classifiers: Mapping[str, Any] | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    environments: Sequence[Mapping[str, Any]] = ()
    benchmarks: Mapping[str, Any] | None = None
    pairs: pl.DataFrame | None = None
    ranks: pl.DataFrame | None = None
    parts: pl.DataFrame | None = None
    toxicity: Sequence[Mapping[str, Any]] = ()
    reference: Path | None = None
    methods: Sequence[Mapping[str, Any]] = ()
    quality: pl.DataFrame | None = None
    measures: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""


def check(inputs: ReportInputs) -> None:
    """Raises ValueError naming the columns of `cells` that are missing."""
    missing = [name for name in CELL_COLUMNS if name not in inputs.cells.columns]
    if missing:
        raise ValueError(
            f"the table of cells lacks the columns {missing}; it has {inputs.cells.columns}. "
            "Run `snakemake` again to aggregate the scores anew."
        )


def is_micro(params: Params) -> bool:
    """Whether the model under test is the embedded micro world (a folder below a folder named `micro`)."""
    return "micro" in Path(params.model.path).parts
