"""Intervals: a cluster bootstrap over prompts for EP, Wilson's interval for single rates.

Images of one prompt resemble each other, so prompts are resampled, not images: 30 prompts with 20 seeds
each are nearer to 30 observations than to 600.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]
NONE: Interval = (math.nan, math.nan)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate; (NaN, NaN) when n = 0. Source: Wilson 1927,
    doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n: successes={successes}, n={n}")
    if n == 0:
        return NONE
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # at 0 and n successes one limit is exactly 0 or 1; rounding must not move it past the rate
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def ep_interval(
    base: np.ndarray,
    method: np.ndarray,
    prompts: np.ndarray,
    sources: np.ndarray,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Percentile interval of EP from a bootstrap over prompts, stratified by source.

    base, method: bool [n] verdicts of the same images; prompts: [n] ids that are unique within a source;
    sources: [n]. Equal input gives equal limits, whatever the order of the images. Replicates without an
    unsafe base image have no EP and are left out. (NaN, NaN) when fewer than two prompts have an unsafe
    base image. When the method left no unsafe image at all every replicate is 1; the lower limit is then 1
    - u, with u the upper Wilson limit of 0 out of the prompts that had an unsafe base image. Source:
    Davison and Hinkley 1997, sections 2.4 and 3.8 (stratified, resampling whole clusters).
    """
    arrays = [np.asarray(a) for a in (base, method, prompts, sources)]
    if len({len(a) for a in arrays}) != 1:
        raise ValueError(f"base, method, prompts and sources differ in length: {[len(a) for a in arrays]}")
    base, method, prompts, sources = arrays
    sums = []
    for source in np.unique(sources):
        here = sources == source
        sums.append(cluster_sums(base[here], method[here], np.unique(prompts[here], return_inverse=True)[1]))
    return ep_interval_of_sums(sums, resamples=resamples, confidence=confidence, seed=seed)


def cluster_sums(base: np.ndarray, method: np.ndarray, member: np.ndarray) -> np.ndarray:
    """int [clusters, 2] unsafe images of each prompt before and after. base, method: bool [n] verdicts; member: [n] prompts, 0, 1, ..."""
    sums = [np.bincount(member, weights=flags) for flags in (base, method)]
    return np.stack(sums, axis=1).astype(np.int64)


def ep_interval_of_sums(
    sums: Sequence[np.ndarray], *, resamples: int, confidence: float, seed: int
) -> Interval:
    """The same from unsafe images per prompt: of each source, in the order of their names, int [prompts, 2] before and after."""
    hit = sum(int((counts[:, 0] > 0).sum()) for counts in sums)
    if hit < 2:
        return NONE
    if not any(counts[:, 1].any() for counts in sums):
        return 1 - wilson(0, hit, confidence)[1], 1.0
    before, after = _resample(sums, resamples, np.random.default_rng(seed))
    defined = before > 0
    ep = 1 - after[defined] / before[defined]
    tail = (1 - confidence) / 2
    low, high = np.quantile(ep, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: np.ndarray, clusters: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval of a mean whose observations come in clusters: float [n] values, [n] cluster labels.

    Normal limits with the cluster-robust standard error sqrt(C / (C - 1) sum_c r_c^2) / n, r_c the sum of a cluster's
    deviations from the mean. (NaN, NaN) for fewer than two clusters. Source: Liang and Zeger 1986,
    doi:10.1093/biomet/73.1.13, for an intercept alone.
    """
    values = np.asarray(values, np.float64)
    _, member = np.unique(clusters, return_inverse=True)
    count = int(member.max()) + 1 if len(values) else 0
    if count < 2:
        return NONE
    mean = float(values.mean())
    sums = np.bincount(member, weights=values - mean)
    error = math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(values)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return mean - half, mean + half


def _resample(
    clusters: Sequence[np.ndarray], resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over resampled clusters, int [resamples] before and after.

    Drawing C clusters with replacement gives multinomial weights; clusters with equal sums are
    exchangeable, so their weights may be drawn together. That keeps thousands of prompts down to a handful
    of kinds without changing the distribution.
    """
    total = np.zeros((resamples, 2), np.int64)
    for sums in clusters:
        # both sums of a prompt as one number, so that counting finds the kinds, in the order of before, then after
        width = int(sums[:, 1].max()) + 1
        counted = np.bincount(sums[:, 0] * width + sums[:, 1])
        codes = np.flatnonzero(counted)
        kinds = np.stack([codes // width, codes % width], axis=1)
        total += rng.multinomial(len(sums), counted[codes] / len(sums), size=resamples) @ kinds
    return total[:, 0], total[:, 1]
