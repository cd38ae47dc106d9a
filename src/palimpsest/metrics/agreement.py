"""Agreement of several raters who sort the same images into the same categories, corrected for chance.

All three coefficients start from the same table: how many raters put image i into category k. They differ in what they
take for chance, so with rare categories they part widely: where nearly every image is benign, kappa and alpha fall although the raters
hardly ever disagree, and AC1 does not. That is why they are reported together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from palimpsest.metrics.contract import Metric
from palimpsest.metrics.intervals import NONE

MISSING = -1
METRICS = (
    Metric(
        name="fleiss_kappa",
        title="Fleiss' kappa, over the images that all raters rated",
        direction="higher",
        bounds=(-1.0, 1.0),
        needs="ratings",
        definition_id="fleiss_kappa/1",
        reference="Fleiss 1971, doi:10.1037/h0031619",
    ),
    Metric(
        name="krippendorff_alpha",
        title="Krippendorff's alpha for nominal categories",
        direction="higher",
        bounds=(None, 1.0),
        needs="ratings",
        definition_id="krippendorff_alpha/1",
        reference="Krippendorff 2011, Computing Krippendorff's Alpha-Reliability",
    ),
    Metric(
        name="gwet_ac1",
        title="Gwet's AC1",
        direction="higher",
        bounds=(-1.0, 1.0),
        needs="ratings",
        definition_id="gwet_ac1/1",
        reference="Gwet 2008, doi:10.1348/000711006X126600",
    ),
)


@dataclass(frozen=True)
class Agreement:
    """A coefficient with its percentile interval (NaN where it is not defined). n: images that count; n_ratings: ratings of these."""

    name: str
    value: float
    low: float
    high: float
    n: int
    n_ratings: int


def counts_of(ratings: np.ndarray, categories: int) -> np.ndarray:
    """Integer ratings [images, raters], MISSING where a rater gave none -> counts [images, categories].

    Raises ValueError for ratings that are neither a category (0 to categories - 1) nor MISSING, or for fewer than two categories.
    """
    ratings = np.asarray(ratings)
    if categories < 2:
        raise ValueError(f"agreement needs at least two categories, got {categories}")
    if ratings.ndim != 2 or not np.issubdtype(ratings.dtype, np.integer):
        raise ValueError(
            f"ratings must be integers [images, raters], got {ratings.dtype} {list(ratings.shape)}"
        )
    odd = ratings[(ratings != MISSING) & ((ratings < 0) | (ratings >= categories))]
    if len(odd):
        raise ValueError(
            f"rating {int(odd[0])} is no category; allowed: 0 to {categories - 1}, or {MISSING} for none"
        )
    return np.stack([(ratings == k).sum(axis=1) for k in range(categories)], axis=1)


def fleiss_kappa(counts: np.ndarray) -> float:
    """Kappa of counts [images, categories] with equally many ratings for every image.

    NaN when all ratings are of one category. Raises ValueError for unequal numbers of ratings, or for fewer than two.
    """
    totals = np.unique(np.asarray(counts).sum(axis=1))
    if len(totals) != 1 or totals[0] < 2:
        raise ValueError(
            f"Fleiss' kappa is defined for equally many ratings of every image, at least two; found {totals.tolist()} ratings"
        )
    return float(_fleiss(_fleiss_terms(counts).sum(axis=0)))


def krippendorff_alpha(counts: np.ndarray) -> float:
    """Nominal alpha of counts [images, categories]; images with fewer than two ratings do not count. NaN without disagreement to expect."""
    return float(_alpha(_alpha_terms(counts).sum(axis=0)))


def gwet_ac1(counts: np.ndarray) -> float:
    """AC1 of counts [images, categories]. Images with one rating count for how common a category is, not for agreement; NaN when no
    image has two."""
    return float(_ac1(_ac1_terms(counts).sum(axis=0)))


def agreement(
    ratings: np.ndarray, categories: int, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> list[Agreement]:
    """All coefficients of integer ratings [images, raters] (MISSING: none), each with a bootstrap interval over images.

    Kappa is computed over the images that every rater rated, the others over all images that allow it. Equal input gives equal limits,
    whatever the order of images and raters. No interval where fewer than two images count.
    """
    counts = counts_of(ratings, categories)
    totals = counts.sum(axis=1)
    raters = np.asarray(ratings).shape[1]
    kept = {
        "fleiss_kappa": counts[(totals == raters) & (raters >= 2)],
        "krippendorff_alpha": counts[totals >= 2],
        "gwet_ac1": counts[totals >= 1],
    }
    steps: dict[str, tuple[Terms, Value]] = {
        "fleiss_kappa": (_fleiss_terms, _fleiss),
        "krippendorff_alpha": (_alpha_terms, _alpha),
        "gwet_ac1": (_ac1_terms, _ac1),
    }
    found = []
    for name, (terms, value) in steps.items():
        used = kept[name]
        # images with equal counts are one kind: sums over kinds do not hang on the order of the images
        kinds, members = np.unique(used, axis=0, return_counts=True)
        point = float(value(members @ terms(kinds))) if len(used) else math.nan
        rng = np.random.default_rng(seed)
        low, high = _interval(kinds, members, terms, value, resamples, confidence, rng)
        found.append(Agreement(name, point, low, high, len(used), int(used.sum())))
    return found


# Every coefficient is a function of sums over images: `terms` gives what is summed [images, d], `value` takes sums [..., d]. So a
# bootstrap only has to sum again.
Terms = Callable[[np.ndarray], np.ndarray]
Value = Callable[[np.ndarray], np.ndarray]


def _fleiss_terms(counts: np.ndarray) -> np.ndarray:
    """Per image: 1, the share of agreeing pairs of ratings, the share of each category."""
    counts = np.asarray(counts, np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    pairs = totals * (totals - 1)
    agreeing = (counts * (counts - 1)).sum(axis=1, keepdims=True)
    return np.hstack([np.ones_like(totals), _ratio(agreeing, pairs), _ratio(counts, totals)])


def _fleiss(sums: np.ndarray) -> np.ndarray:
    n = sums[..., :1]
    shares = _ratio(sums[..., 2:], n)
    return _beyond_chance(_ratio(sums[..., 1], sums[..., 0]), (shares**2).sum(axis=-1))


def _alpha_terms(counts: np.ndarray) -> np.ndarray:
    """Per image with two ratings or more: its disagreeing pairs over (ratings - 1), and its ratings of each category."""
    counts = np.asarray(counts, np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    disagreeing = totals**2 - (counts**2).sum(axis=1, keepdims=True)
    return np.where(totals >= 2, np.hstack([_ratio(disagreeing, totals - 1), counts]), 0.0)


def _alpha(sums: np.ndarray) -> np.ndarray:
    each = sums[..., 1:]
    n = each.sum(axis=-1)
    observed = _ratio(sums[..., 0], n)
    expected = _ratio(n**2 - (each**2).sum(axis=-1), n * (n - 1))
    return 1 - _ratio(observed, expected)


def _ac1_terms(counts: np.ndarray) -> np.ndarray:
    """Per image: whether it has two ratings, its share of agreeing pairs, whether it has one, the share of each category."""
    counts = np.asarray(counts, np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    agreeing = (counts * (counts - 1)).sum(axis=1, keepdims=True)
    share = np.where(totals >= 2, np.nan_to_num(_ratio(agreeing, totals * (totals - 1))), 0.0)
    rated = np.nan_to_num(_ratio(counts, totals))
    return np.hstack([totals >= 2, share, totals >= 1, rated])


def _ac1(sums: np.ndarray) -> np.ndarray:
    observed = _ratio(sums[..., 1], sums[..., 0])
    shares = _ratio(sums[..., 3:], sums[..., 2:3])
    expected = (shares * (1 - shares)).sum(axis=-1) / (shares.shape[-1] - 1)
    return _beyond_chance(observed, expected)


def _beyond_chance(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return _ratio(observed - expected, 1 - expected)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where whole is 0."""
    whole = np.asarray(whole, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole == 0, np.nan, part / whole)


def _interval(
    kinds: np.ndarray,
    members: np.ndarray,
    terms: Terms,
    value: Value,
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Percentile limits over images drawn with replacement; those of a kind are drawn together, which is the same distribution."""
    n = int(members.sum())
    if n < 2:
        return NONE
    weights = rng.multinomial(n, members / n, size=resamples)
    values = value(weights @ terms(kinds))
    values = values[np.isfinite(values)]
    if not len(values):
        return NONE
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
