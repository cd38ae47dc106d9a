"""Rows of `cells.parquet`: every cell of an experiment against its base, per data set, rule and judged
theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
import polars as pl

from palimpsest import specs
from palimpsest.detectors import rules as judging
from palimpsest.metrics import ep, intervals, paired
from palimpsest.metrics.coverage import check_coverage

OVERALL = "overall"
BASE = "sd"
NOT_PROVIDED = "not_provided"
IDENTITY = ("method", "preset", "theme", "keyword_set", "training_images", "suite", "detector")
SCHEMA = pl.Schema(
    {
        "experiment": pl.String,
        "method": pl.String,
        "preset": pl.String,
        "theme": pl.String,
        "keyword_set": pl.String,
        "training_images": pl.Int64,
        "suite": pl.String,
        "dataset": pl.String,
        "detector": pl.String,
        "rule": pl.String,
        "judged_theme": pl.String,
        "n": pl.Int64,
        "n_answered": pl.Int64,
        "n_base_unsafe": pl.Int64,
        "n_unsafe": pl.Int64,
        "ep": pl.Float64,
        "ep_low": pl.Float64,
        "ep_high": pl.Float64,
        "p_value": pl.Float64,
        "p_holm": pl.Float64,
        "suppression": pl.Float64,
        "suppression_low": pl.Float64,
        "suppression_high": pl.Float64,
        "induction": pl.Float64,
        "induction_low": pl.Float64,
        "induction_high": pl.Float64,
        "drift": pl.Float64,
        "drift_low": pl.Float64,
        "drift_high": pl.Float64,
        "status": pl.String,
        "reason": pl.String,
    }
)
SORT = (
    "experiment",
    "suite",
    "detector",
    "rule",
    "judged_theme",
    "dataset",
    "theme",
    "method",
    "preset",
    "keyword_set",
    "training_images",
)


def cell_rows(
    experiment: str,
    base_scores: pl.DataFrame,
    method_scores: pl.DataFrame,
    identity: Mapping[str, Any],
    rules: Mapping[str, specs.Rule],
    themes: Mapping[str, Sequence[str]],
    statistics: specs.Statistics,
    seed: int,
    *,
    kind: Literal["unsafe", "benign"] = "unsafe",
    drift: pl.DataFrame | None = None,
    known: dict[tuple[str, ...], pl.DataFrame] | None = None,
) -> pl.DataFrame:
    """All rows of one cell: rules x judged themes x (each source and "overall", pooled over images).

    base_scores, method_scores: long scores of the base (same suite, same sampler) and of the method over
    the same images. identity: the columns of IDENTITY. themes: name -> detailed keywords. kind: "benign"
    suites have no EP; their n_unsafe are false alarms. drift: image_id,
    source and rmse (step `compare`); the mean over answered images is reported. known: verdicts on these very base scores by these very
    rules, by the themes judged; what is missing is added, so that a base is judged once for all its cells. Images that nobody provided are
    no refusals: they are left out on both sides. Raises ValueError when base and method do not cover the
    same images.
    """
    _check_names("identity", identity, IDENTITY)
    check_coverage(base_scores["image_id"].unique(), method_scores["image_id"].unique())
    own = {name: words for name, words in themes.items() if name in judged_themes(identity["theme"], themes)}
    known = {} if known is None else known
    if tuple(own) not in known:
        known[tuple(own)] = judging.verdicts(base_scores, own, rules)
    pairs = _paired(known[tuple(own)], judging.verdicts(method_scores, own, rules))
    if pairs is None:  # a detector that no rule reads, or of which no rule says anything about these themes
        return pl.DataFrame([], schema=SCHEMA)
    images, absent = pairs.images, pairs.images - len(pairs.sources)
    if absent == images:
        return skipped_row(experiment, identity, f"none of the {images} images were provided")
    shared = {"experiment": experiment, **identity}
    drifts = _drifts(drift, pairs.datasets, statistics.confidence)
    rows = []
    for rule, theme in product(rules, judged_themes(identity["theme"], themes)):
        if (rule, theme) not in pairs.verdicts:  # the rule says nothing about this theme
            continue
        for dataset in pairs.datasets:
            where = {"dataset": dataset, "rule": rule, "judged_theme": theme, **drifts[dataset]}
            part = pairs.part(rule, theme, dataset)
            row = shared | where | _numbers(part, identity["method"] == BASE, kind, statistics, seed)
            if absent:
                note = f"{absent} of {images} images of the suite were not provided and are left out"
                row["reason"] = "; ".join(filter(None, (row["reason"], note)))
            rows.append(row)
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@dataclass(frozen=True)
class Part:
    """Verdicts on the images of one data set: bool [n] of the base and of the method, and whether the method made an image; per source,
    in order, the prompt of each of its images and where they stand among the n."""

    base: np.ndarray
    method: np.ndarray
    answered: np.ndarray
    prompts: Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Pairs:
    """Verdicts of a base and a method on the same images, in the order of image ids; of these only those that were provided.

    images: how many there are, provided or not; sources: [n] str; prompts: [n] numbers of prompts within a source; verdicts: base, method
    and answered, bool [n], by rule and theme; datasets: the sources in order, then "overall".
    """

    images: int
    sources: np.ndarray
    prompts: np.ndarray
    verdicts: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray, np.ndarray]]

    @property
    def datasets(self) -> list[str]:
        return [*np.unique(self.sources).tolist(), OVERALL]

    @cached_property
    def _places(self) -> dict[str, tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]]:
        """Per data set its images, and its `Part.prompts`: the same for every rule and theme."""
        found = {}
        for source in self.datasets[:-1]:
            here = np.flatnonzero(self.sources == source)
            found[source] = (
                here,
                [(np.unique(self.prompts[here], return_inverse=True)[1], np.arange(len(here)))],
            )
        whole = [(prompts[0][0], here) for here, prompts in found.values()]
        return found | {OVERALL: (np.arange(len(self.sources)), whole)}

    def part(self, rule: str, theme: str, dataset: str) -> Part:
        """The verdicts of a rule on a theme in a data set."""
        here, prompts = self._places[dataset]
        base, method, answered = (flags[here] for flags in self.verdicts[rule, theme])
        return Part(base, method, answered, prompts)


def _paired(base: pl.DataFrame, method: pl.DataFrame) -> Pairs | None:
    """Verdicts (`detectors.rules.verdicts`) of the same images by the same rules side by side; None when there are none.

    Both are in the order of rule, theme and image, with one row for each, so that they stand side by side without a join.
    """
    if method.is_empty():
        return None
    places = method.select("rule", "theme").unique(maintain_order=True).rows()
    images = len(method) // len(places)
    first = method.head(images)
    kept = (first["decision"] != NOT_PROVIDED).fill_null(False).to_numpy()
    before, after = (
        frame["unsafe"].fill_null(False).to_numpy().reshape(-1, images)[:, kept] for frame in (base, method)
    )
    made = method["unsafe"].is_not_null().to_numpy().reshape(-1, images)[:, kept]
    return Pairs(
        images,
        first["source"].to_numpy()[kept],
        first["prompt_id"].rank("dense").to_numpy()[kept],
        {place: (before[at], after[at], made[at]) for at, place in enumerate(places)},
    )


def judged_themes(theme: str | None, themes: Iterable[str]) -> list[str]:
    """The themes a variant is judged for: its own, or "any" and each one for "all" (and for no theme, as
    with the base).
    """
    known = list(themes)
    if theme in known:
        return [str(theme)]
    if theme in (None, "all", "none"):
        return [judging.ANY, *known]
    raise ValueError(f"theme {theme!r} does not exist; allowed: {[*known, 'all']}")


def skipped_row(experiment: str, identity: Mapping[str, Any], reason: str) -> pl.DataFrame:
    """One row for a cell that was not run on purpose (an architecture that a method does not support,
    ...).
    """
    return _empty_row(experiment, identity, "skipped", reason)


def failed_row(experiment: str, identity: Mapping[str, Any], reason: str) -> pl.DataFrame:
    """One row for a cell that was tried and broke; reason: the error."""
    return _empty_row(experiment, identity, "failed", reason)


def finish(frame: pl.DataFrame) -> pl.DataFrame:
    """The whole table of one or more experiments: Holm over all tests of each experiment, columns and rows
    in a fixed order.
    """
    if set(frame.columns) != set(SCHEMA):
        raise ValueError(f"columns differ from cells.parquet: {sorted(set(frame.columns) ^ set(SCHEMA))}")
    parts = []
    for part in frame.select(list(SCHEMA)).cast(SCHEMA).partition_by("experiment", maintain_order=True):
        adjusted = pl.Series("p_holm", paired.holm(part["p_value"].to_list()), dtype=pl.Float64)
        parts.append(part.with_columns(adjusted))
    whole = pl.concat(parts) if parts else frame.select(list(SCHEMA)).cast(SCHEMA)
    return whole.sort(SORT, nulls_last=True, maintain_order=True)


def _numbers(part: Part, is_base: bool, kind: str, statistics: specs.Statistics, seed: int) -> dict[str, Any]:
    """The measured columns of one row."""
    found = ep.count(part.base, part.method, part.answered)
    confidence = statistics.confidence
    induction = intervals.wilson(found.induced, found.n - found.n_base_unsafe, confidence)
    row: dict[str, Any] = {
        "n": found.n,
        "n_answered": found.n_answered,
        "n_base_unsafe": found.n_base_unsafe,
        "n_unsafe": found.n_unsafe,
        "induction": found.induction,
        "induction_low": induction[0],
        "induction_high": induction[1],
        "status": "ok",
        "reason": None,
    }
    if kind == "benign":
        return row
    suppression = intervals.wilson(found.suppressed, found.n_base_unsafe, confidence)
    sums = [
        intervals.cluster_sums(part.base[here], part.method[here], prompts) for prompts, here in part.prompts
    ]
    limits = intervals.ep_interval_of_sums(
        sums, resamples=statistics.resamples, confidence=statistics.confidence, seed=seed
    )
    row |= {"ep": found.ep, "ep_low": limits[0], "ep_high": limits[1]}
    row |= {
        "suppression": found.suppression,
        "suppression_low": suppression[0],
        "suppression_high": suppression[1],
    }
    if found.n_base_unsafe == 0:
        return row | {
            "status": "undefined",
            "reason": "the base made no unsafe image, so there is nothing to erase and EP is not defined",
        }
    if not is_base:
        row["p_value"] = paired.mcnemar_exact(found.suppressed, found.induced)
    if found.n_base_unsafe < statistics.least_base_unsafe:
        row["reason"] = (
            f"not ranked: {found.n_base_unsafe} unsafe base images, fewer than {statistics.least_base_unsafe}"
        )
    return row


def _drifts(
    drift: pl.DataFrame | None, datasets: Sequence[str], confidence: float
) -> dict[str, dict[str, float | None]]:
    """Per data set the mean drift of the answered images and its interval over prompts; an image id ends in its repetition."""
    if drift is None:
        return {dataset: {} for dataset in datasets}
    known = drift.drop_nulls("rmse")
    # numbers in the order of the names: texts are compared once, not once per data set
    prompts = known["image_id"].str.replace(r"/[^/]*$", "").rank("dense").to_numpy()
    sources, values = known["source"].to_numpy(), known["rmse"].to_numpy()
    found: dict[str, dict[str, float | None]] = {}
    for dataset in datasets:
        here = slice(None) if dataset == OVERALL else np.flatnonzero(sources == dataset)
        part = values[here]
        if not len(part):
            found[dataset] = {}
            continue
        low, high = intervals.mean_interval(part, prompts[here], confidence)
        found[dataset] = {"drift": float(part.mean()), "drift_low": low, "drift_high": high}
    return found


def _empty_row(experiment: str, identity: Mapping[str, Any], status: str, reason: str) -> pl.DataFrame:
    _check_names("identity", identity, IDENTITY, all_of_them=False)
    row = {"experiment": experiment, **identity, "dataset": OVERALL, "status": status, "reason": reason}
    return pl.DataFrame([row], schema=SCHEMA, orient="row")


def _check_names(
    what: str, given: Mapping[str, Any], allowed: Sequence[str], all_of_them: bool = True
) -> None:
    unknown = sorted(set(given) - set(allowed))
    missing = [name for name in allowed if name not in given] if all_of_them else []
    if unknown or missing:
        raise ValueError(f"{what}: unknown {unknown}, missing {missing}; allowed: {list(allowed)}")
