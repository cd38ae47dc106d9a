"""Ranks of methods with intervals: how far a place in a table may move when other prompts had been drawn.

All methods are judged on the same images, so prompts are drawn once for all of them: what makes a draw of prompts hard for one method makes
it hard for the others too, and a difference of ranks is surer than two intervals of EP say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    flags = np.concatenate([base[None], methods]).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn = np.zeros((resamples, len(flags)))
    for source in np.unique(sources):
        here = sources == source
        _, member = np.unique(prompts[here], return_inverse=True)
        count = int(member.max()) + 1
        sums = np.stack([np.bincount(member, weights=row[here], minlength=count) for row in flags], axis=1)
        # fewer unsafe images are better, and the base's count is the same for all: ranks by count are ranks by EP
        drawn += rng.multinomial(count, np.full(count, 1 / count), size=resamples) @ sums
    ranks = _ranks(drawn[drawn[:, 0] > 0][:, 1:])
    tail = (1 - confidence) / 2
    low, high = np.quantile(ranks, [tail, 1 - tail], axis=0)
    return Ranks(
        rank=_ranks(flags.sum(axis=1)[None, 1:])[0],
        low=low,
        high=high,
        first=(ranks == ranks.min(axis=1, keepdims=True)).mean(axis=0),
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 along the last axis, smallest first, equals share the mean: float [draws, m]."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=1), np.float64)
