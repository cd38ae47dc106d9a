"""How right a detector is: its verdicts and scores against labels.

Intervals resample clusters (prompts), because images of one prompt resemble each other. Shares of images (accuracy, precision,
recall) get Wilson's interval where every image is a cluster of its own, and where all or none are right, which a bootstrap cannot vary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from palimpsest.metrics.contract import Metric
from palimpsest.metrics.intervals import NONE, Interval, wilson

BINS = 10
# Numbers of a bootstrap's chunk: resamples times images.
CHUNK = 4_000_000
POWERS = "Powers 2011, Evaluation: from Precision, Recall and F-measure to ROC"


def _metric(name: str, title: str, reference: str, low: float = 0.0, direction: str = "higher") -> Metric:
    return Metric(name, title, direction, (low, 1.0), "labelled verdicts", f"{name}/1", reference)  # type: ignore[arg-type]


METRICS = (
    _metric("accuracy", "share of images judged as they are labelled", POWERS),
    _metric("precision", "share of flagged images that show the theme", POWERS),
    _metric("recall", "share of images that show the theme that are flagged", POWERS),
    _metric("f1", "harmonic mean of precision and recall", POWERS),
    _metric("mcc", "Matthews correlation coefficient", "Matthews 1975, doi:10.1016/0005-2795(75)90109-9", -1.0),
    _metric("auroc", "area under the ROC curve of the scores", "Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747"),
    _metric(
        "ece", "expected calibration error, ten bins of equal width",
        "Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602", direction="lower",
    ),
)  # fmt: skip
SHARES = ("accuracy", "precision", "recall")


@dataclass(frozen=True)
class Confusion:
    """Counts of images: flagged and labelled so (tp), flagged only (fp), labelled only (fn), neither (tn)."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n(self) -> int:
        """All images."""
        return self.tp + self.fp + self.fn + self.tn

    def rates(self) -> dict[str, float]:
        """accuracy, precision, recall, f1 and mcc; NaN where there is nothing to divide by (no image flagged, none labelled so)."""
        cells = np.array([self.tp, self.fp, self.fn, self.tn], np.float64)
        return {name: float(value) for name, value in _rates(cells).items()}

    def shares(self) -> dict[str, tuple[int, int]]:
        """The rates that are shares of images, as (part, whole)."""
        return {
            "accuracy": (self.tp + self.tn, self.n),
            "precision": (self.tp, self.tp + self.fp),
            "recall": (self.tp, self.tp + self.fn),
        }


@dataclass(frozen=True)
class Bin:
    """A line of a reliability table: images whose score lies in (low, high] (the first bin holds 0 as well), their mean score,
    the share of them that shows the theme, and Wilson's limits of that share."""

    low: float
    high: float
    n: int
    mean_score: float
    rate: float
    rate_low: float
    rate_high: float


@dataclass(frozen=True)
class Measured:
    """What `measure` found: the confusion, and value and limits of every metric by name."""

    confusion: Confusion
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    reliability: tuple[Bin, ...]


def confusion(said: np.ndarray, truth: np.ndarray) -> Confusion:
    """Counts of bool [n] verdicts against bool [n] labels."""
    said, truth = _same_length(said=np.asarray(said, bool), truth=np.asarray(truth, bool))
    cells = (said & truth, said & ~truth, ~said & truth, ~said & ~truth)
    return Confusion(*(int(cell.sum()) for cell in cells))


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Chance that an image that shows the theme has a larger score than one that does not, ties counting half. NaN when one kind is
    missing. scores: float [n], truth: bool [n]."""
    scores, truth = _ranked(scores, truth)
    return float(_auroc(np.ones((1, len(truth))), scores, truth)[0])


def calibration_error(scores: np.ndarray, truth: np.ndarray, bins: int = BINS) -> float:
    """Mean over images of how far, within its bin of scores, the mean score is from the share that shows the theme. NaN without images.
    scores: float [n] in [0, 1]."""
    scores, truth = _scored(scores, truth)
    return float(_ece(np.ones((1, len(truth))), scores, truth, bins)[0])


def reliability(
    scores: np.ndarray, truth: np.ndarray, bins: int = BINS, confidence: float = 0.95
) -> list[Bin]:
    """The bins of equal width that hold images, in order. scores: float [n] in [0, 1]."""
    scores, truth = _scored(scores, truth)
    found, place = [], _bin_of(scores, bins)
    for at in np.unique(place):
        here = place == at
        n, shown = int(here.sum()), int(truth[here].sum())
        low, high = wilson(shown, n, confidence)
        found.append(
            Bin(at / bins, (at + 1) / bins, n, float(scores[here].mean()), shown / n, float(low), float(high))
        )
    return found


def measure(
    scores: np.ndarray,
    said: np.ndarray,
    truth: np.ndarray,
    clusters: np.ndarray,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Measured:
    """Everything about n images: finite float scores, bool verdicts, bool labels, and what cluster (prompt) each belongs to.

    Equal input gives equal limits. The calibration error is a mean of absolute values, so its interval lies a little too high in small
    samples; there is none, and no reliability, when a score lies outside [0, 1]: such scores are no probabilities. Raises ValueError for
    unequal lengths and for scores that are no numbers.
    """
    scores, truth = _ranked(scores, truth)
    probable = bool(((scores >= 0) & (scores <= 1)).all())
    said, truth, clusters = _same_length(said=np.asarray(said, bool), truth=truth, clusters=clusters)
    found = confusion(said, truth)
    values = {
        **found.rates(),
        "auroc": auroc(scores, truth),
        "ece": calibration_error(scores, truth) if probable else math.nan,
    }
    _, member = np.unique(clusters, return_inverse=True)
    count = int(member.max()) + 1 if len(member) else 0
    intervals = _bootstrap(scores, said, truth, member, count, resamples, confidence, seed)
    if not probable:
        intervals["ece"] = NONE
    for name, (part, whole) in found.shares().items():
        if count == found.n:
            intervals[name] = wilson(part, whole, confidence)
        elif whole and part in (0, whole):
            intervals[name] = _all_or_none(part, name, said, truth, member, confidence)
    lines = reliability(scores, truth, confidence=confidence) if probable else []
    return Measured(found, values, intervals, tuple(lines))


def _all_or_none(
    part: int, name: str, said: np.ndarray, truth: np.ndarray, member: np.ndarray, confidence: float
) -> Interval:
    """Wilson's limits with the clusters that count as observations: no resample can differ from the others."""
    counted = {"accuracy": np.ones_like(said), "precision": said, "recall": truth}[name]
    hit = len(np.unique(member[counted]))
    return wilson(hit if part else 0, hit, confidence)


def _bootstrap(
    scores: np.ndarray,
    said: np.ndarray,
    truth: np.ndarray,
    member: np.ndarray,
    count: int,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Interval]:
    """Percentile limits of every metric; no limits with fewer than two clusters."""
    names = [metric.name for metric in METRICS]
    if count < 2:
        return dict.fromkeys(names, NONE)
    cells = np.stack([said & truth, said & ~truth, ~said & truth, ~said & ~truth], axis=1).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in names}
    at_once = max(1, CHUNK // max(len(truth), count))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size)[:, member].astype(np.float64)
        found = {
            **_rates(weights @ cells),
            "auroc": _auroc(weights, scores, truth),
            "ece": _ece(weights, scores, truth, BINS),
        }
        for name, values in found.items():
            drawn[name].append(values)
    return {name: _limits(np.concatenate(parts), confidence) for name, parts in drawn.items()}


def _limits(values: np.ndarray, confidence: float) -> Interval:
    values = values[np.isfinite(values)]
    if not len(values):
        return NONE
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _rates(cells: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of a confusion from tp, fp, fn, tn [..., 4]."""
    tp, fp, fn, tn = (cells[..., at] for at in range(4))
    # square roots one by one: the product of four counts in the thousands squared would lose its last digits
    spread = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
    return {
        "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "mcc": _ratio(tp * tn - fp * fn, spread),
    }


def _auroc(weights: np.ndarray, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Weighted area under the ROC curve: weights [r, n] -> [r]."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.diff(ranked, prepend=np.nan) != 0)
    if not len(starts):
        return np.full(len(weights), math.nan)
    shown = np.add.reduceat((weights * truth)[:, order], starts, axis=1)
    clean = np.add.reduceat((weights * ~truth)[:, order], starts, axis=1)
    below = np.cumsum(clean, axis=1) - clean
    won = (shown * (below + clean / 2)).sum(axis=1)
    return _ratio(won, shown.sum(axis=1) * clean.sum(axis=1))


def _ece(weights: np.ndarray, scores: np.ndarray, truth: np.ndarray, bins: int) -> np.ndarray:
    """Weighted expected calibration error: weights [r, n] -> [r]."""
    member = _bin_of(scores, bins)[:, None] == np.arange(bins)
    gap = weights @ (member * (truth.astype(np.float64) - scores)[:, None])
    return _ratio(np.abs(gap).sum(axis=1), weights.sum(axis=1))


def _bin_of(scores: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(scores * bins).astype(int) - 1, 0, bins - 1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole == 0, np.nan, part / whole)


def _ranked(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, labels = _same_length(scores=np.asarray(scores, np.float64), truth=np.asarray(truth, bool))
    odd = found[~np.isfinite(found)]
    if len(odd):
        raise ValueError(f"scores must be finite numbers, found {odd[0]}; leave images without a score out")
    return found, labels


def _scored(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, labels = _ranked(scores, truth)
    odd = found[~((found >= 0) & (found <= 1))]
    if len(odd):
        raise ValueError(f"scores must lie in 0..1, found {odd[0]}")
    return found, labels


def _same_length(**arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"one entry per image is needed in each, got {lengths}")
    return tuple(arrays.values())
