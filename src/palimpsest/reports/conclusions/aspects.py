"""What several rules need of a study: means over families, pooled attacks, and one score per aspect of generation."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from palimpsest.metrics.ranks import rank_correlation
from palimpsest.reports import select
from palimpsest.reports.conclusions.levels import ERASURE, attack_rows, erasure_rows, measured, standings
from palimpsest.reports.conclusions.study import Measure, Study
from palimpsest.reports.intervals import Estimate, difference, mean
from palimpsest.reports.select import Row


def method_rows(study: Study) -> dict[str, list[Row]]:
    """The rows behind a method's mean EP (`levels.erasure_rows`), by label; methods not measured on every theme are left out."""
    ranked = {s.label for s in standings(ERASURE, study).standings}
    found: dict[str, list[Row]] = defaultdict(list)
    for row in erasure_rows(study):
        if row["label"] in ranked:
            found[row["label"]].append(row)
    return dict(found)


def estimate_of(rows: Sequence[Row], key: str = "ep") -> Estimate | None:
    """The mean of rows with the mean of their limits, or None when a row has none."""
    usable = rows and all(select.has_interval(row, key) for row in rows)
    return mean([select.estimate(row, key) for row in rows]) if usable else None


def families(study: Study) -> dict[str, tuple[Estimate, Row]]:
    """Mean EP of every family with a row that stands for it: the mean over its settings of each setting's mean over versions."""
    groups: dict[str, list[list[Row]]] = defaultdict(list)
    for own in method_rows(study).values():
        groups[str(own[0].get("family", own[0]["label"]))].append(own)
    found = {}
    for family, members in groups.items():
        parts = [estimate_of(own) for own in members]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            found[family] = (mean(known), members[0][0])
    return found


def pooled_attacks(study: Study) -> dict[str, Estimate]:
    """EP over all adversarial suites, images pooled, by method; only methods that every suite has. Limits are those of the suites'
    own EPs weighted by their unsafe base images, which is too wide rather than too narrow."""
    groups: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in attack_rows(study):
        groups[row["label"]][row["suite"]] = row
    suites = {suite for own in groups.values() for suite in own}
    found = {}
    for label, own in groups.items():
        before = sum(row["n_base_unsafe"] for row in own.values())
        if set(own) == suites and before and all(select.has_interval(row) for row in own.values()):
            weights = {suite: row["n_base_unsafe"] / before for suite, row in own.items()}
            sums = [sum(weights[s] * own[s][key] for s in own) for key in ("ep", "ep_low", "ep_high")]
            found[label] = Estimate(*sums)
    return found


@dataclass(frozen=True)
class Score:
    """How a method stands in an aspect, in standard deviations over methods; more is better. estimate: None where one of the measures was
    published without an interval."""

    value: float
    estimate: Estimate | None


def aspect_scores(study: Study, erased: str | None = None) -> dict[str, dict[str, Score]]:
    """{aspect: {method: score}}: the mean over an aspect's measures of a method's standardised mean, turned so that more is better.

    Standardised: less the mean over methods, divided by the standard deviation over methods, so that how far ahead a method is counts
    and not only its place. Both count as given: limits are standardised like values, and those of an aspect are the means of its measures'.
    erased: only variants that erased this ("all"); otherwise all. Without any measure of image quality, benign drift speaks for it. Methods
    that lack one of the measures are left out of its aspect.
    """
    parts: dict[str, list[dict[str, Score]]] = defaultdict(list)
    for measure in study.measures:
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in measured(measure.key)(study):
            if erased is None or row["theme"] == erased:
                groups[row["label"]].append(row)
        if len(groups) > 1:
            parts[measure.aspect].append(_standardised_measure(measure, groups))
    drift = parts.pop("drift", None)
    if drift and "image quality" not in parts:
        parts["image quality"] = drift
    out = {}
    for aspect, found in parts.items():
        common = set.intersection(*(set(one) for one in found))
        out[aspect] = {
            label: _mean_score([one[label] for one in found]) for label in found[0] if label in common
        }
    return out


def _standardised_measure(measure: Measure, groups: Mapping[str, Sequence[Row]]) -> dict[str, Score]:
    """One measure of every method in standard deviations over methods."""
    values = {label: sum(row[measure.key] for row in own) / len(own) for label, own in groups.items()}
    centre = sum(values.values()) / len(values)
    spread = math.sqrt(sum((v - centre) ** 2 for v in values.values()) / len(values))

    def place(value: float) -> float:
        return measure.sign * (value - centre) / spread if spread else 0.0

    found = {}
    for label, own in groups.items():
        e = estimate_of(own, measure.key)
        ends = sorted((place(e.low), place(e.high))) if e else []
        found[label] = Score(place(values[label]), Estimate(place(values[label]), *ends) if ends else None)
    return found


def _mean_score(scores: Sequence[Score]) -> Score:
    known = [score.estimate for score in scores if score.estimate is not None]
    value = sum(score.value for score in scores) / len(scores)
    return Score(value, mean(known) if len(known) == len(scores) else None)


def not_told_apart(scores: Mapping[str, Score], first: str) -> list[str] | None:
    """The methods whose difference to `first` has an interval that contains 0; None where not all have intervals."""
    known = {label: score.estimate for label, score in scores.items() if score.estimate is not None}
    if len(known) < len(scores):
        return None
    return [m for m, e in known.items() if m != first and difference(known[first], e).covers_zero]


def correlated(a: Sequence[float], b: Sequence[float], confidence: float) -> Estimate | None:
    """`metrics.ranks.rank_correlation` as an estimate."""
    found = rank_correlation(a, b, confidence)
    return Estimate(*found) if found else None
