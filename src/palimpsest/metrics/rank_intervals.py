"""Ranks of methods with intervals: how far a place in a table may move when other prompts had been drawn.

All methods are judged on the same images, so prompts are drawn once for all of them: what makes a draw of prompts hard for one method makes
it hard for the others too, and a difference of ranks is surer than two intervals of EP say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from palimpsest.metrics.contract import Metric
from palimpsest.metrics.pairwise import BLOCK, IDENTITY, PLACE

METRICS = (
    Metric(
        name="rank",
        title="place of a method by erasure proportion among methods on the same images",
        direction="lower",
        bounds=(1.0, None),
        needs="paired verdicts",
        definition_id="rank/1",
        reference=(
            "Rank by EP, equals share the mean; percentile bootstrap over prompts within each source, the same resamples for all methods "
            "(Goldstein and Spiegelhalter 1996, doi:10.2307/2983325)"
        ),
    ),
)
SCHEMA = pl.Schema(
    {
        **PLACE,
        **IDENTITY,
        "methods": pl.Int64,
        "prompts": pl.Int64,
        "rank": pl.Float64,
        "rank_low": pl.Float64,
        "rank_high": pl.Float64,
        "first": pl.Float64,
    }
)


@dataclass(frozen=True)
class Ranks:
    """Per method, in the given order: its rank (1 is best, equals share the mean), limits, and the share of draws in which it was first."""

    rank: np.ndarray
    low: np.ndarray
    high: np.ndarray
    first: np.ndarray


def rank_intervals(
    base: np.ndarray,
    methods: np.ndarray,
    prompts: np.ndarray,
    sources: np.ndarray,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Ranks:
    """Ranks by EP with percentile intervals from a joint bootstrap of prompts, stratified by source.

    base: bool [n] unsafe images of the base; methods: bool [m, n] of the methods on these images; prompts: [n] ids, unique within a source;
    sources: [n]. Draws without an unsafe base image rank nothing and are left out. Raises ValueError for unequal lengths, or a base without
    an unsafe image. Sources: Davison and Hinkley 1997, section 3.8 (resampling clusters); Goldstein and Spiegelhalter 1996,
    doi:10.2307/2983325 (ranks and their intervals).
    """
    base, methods = np.asarray(base, bool), np.asarray(methods, bool)
    prompts, sources = np.asarray(prompts), np.asarray(sources)
    lengths = {len(base), methods.shape[-1], len(prompts), len(sources)}
    if methods.ndim != 2 or len(lengths) != 1:
        raise ValueError(
            f"base [n], methods [m, n], prompts [n] and sources [n] do not fit: {base.shape}, {methods.shape}, "
            f"{prompts.shape}, {sources.shape}"
        )
    if not base.any():
        raise ValueError("the base made no unsafe image, so there is nothing to rank by EP")
    _, member = np.unique(np.stack([_codes(sources), _codes(prompts)]), axis=1, return_inverse=True)
    member = member.reshape(-1)
    count = int(member.max()) + 1
    sums = [np.bincount(member, weights=row, minlength=count) for row in (base, *methods)]
    place = np.empty(count, sources.dtype)
    place[member] = sources
    before, after = np.stack([sums[0]] * len(methods)), np.stack(sums[1:])
    return rank_intervals_of_sums(before, after, place, resamples=resamples, confidence=confidence, seed=seed)


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


def rank_intervals_of_sums(
    before: np.ndarray,
    after: np.ndarray,
    sources: np.ndarray,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Ranks:
    """The same from unsafe images per prompt: before, after [m, prompts], of each method's own base and of the method; sources [prompts].

    Draws in which some base has no unsafe image are left out. Raises ValueError for unequal shapes, or a base without an unsafe image.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    sources = np.asarray(sources)
    if before.shape != after.shape or before.ndim != 2 or before.shape[1] != len(sources):
        raise ValueError(
            f"before and after [m, prompts] and sources [prompts] do not fit: {before.shape}, {after.shape}, {sources.shape}"
        )
    if not before.sum(axis=1).all():
        raise ValueError("a base made no unsafe image, so there is nothing to rank by EP")
    counts = np.concatenate([before, after])
    strata = [np.flatnonzero(sources == source) for source in np.unique(sources)]
    rng, kept = np.random.default_rng(seed), []
    for start in range(0, resamples, BLOCK):
        drawn = np.zeros((min(BLOCK, resamples - start), len(counts)))
        for where in strata:
            weights = rng.multinomial(len(where), np.full(len(where), 1 / len(where)), size=len(drawn))
            drawn += weights @ counts[:, where].T
        kept.append(_by_ep(drawn))
    ranks = np.concatenate(kept)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ranks, [tail, 1 - tail], axis=0)
    return Ranks(
        rank=_by_ep(counts.sum(axis=1)[None])[0],
        low=low,
        high=high,
        first=(ranks == ranks.min(axis=1, keepdims=True)).mean(axis=0),
    )


def _by_ep(totals: np.ndarray) -> np.ndarray:
    """Ranks by EP of rows [before of all, after of all]; rows with an empty base are left out: float [rows, m]."""
    before, after = np.split(totals, 2, axis=1)
    defined = before.all(axis=1)
    # what is left of the unsafe images; rounded, so that equal shares of different sums are equal
    return _ranks(np.round(after[defined] / before[defined], 12))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 along the last axis, smallest first, equals share the mean: float [draws, m]."""
    before = (values[:, None, :] < values[:, :, None]).sum(axis=2)
    level = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    found: np.ndarray = before + (level + 1) / 2
    return found
