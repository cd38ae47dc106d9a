"""What measures of two sets of pictures have in common: feature matrices, and an interval over prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np

from palimpsest.metrics.intervals import NONE, Interval

GROUPS = 50
"""Most groups of prompts for a jackknife: each costs one more evaluation."""


def checked(features: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two feature matrices [n, d] in float64.

    Raises ValueError unless both have the same n and d: these measures depend on n, so unequal sets would be compared for their size.
    """
    a, b = np.asarray(features, np.float64), np.asarray(others, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected two matrices of features with equal width, got {a.shape} and {b.shape}")
    if len(a) != len(b):
        raise ValueError(
            f"sets of {len(a)} and {len(b)} pictures cannot be compared: the measure depends on the number of pictures. "
            "Give both the same images, or draw as many from the larger set."
        )
    if len(a) < 2:
        raise ValueError(f"a set needs two pictures or more, got {len(a)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(
            "features hold NaN or infinite values; the images or the network's weights are damaged"
        )
    return a, b


def groups_of(clusters: np.ndarray, most: int = GROUPS, seed: int = 0) -> np.ndarray:
    """The group 0, 1, ... of every picture, whole clusters (prompts) in at most `most` groups of nearly equal size: int [n]."""
    names, member = np.unique(clusters, return_inverse=True)
    count = min(most, len(names))
    place = np.random.default_rng(seed).permutation(len(names)) % max(1, count)
    return place[member]


def without_each(member: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is left without each group, for groups of one size at a time: groups [g], and rows [g, kept] in their order.

    member: int [n] groups 0, 1, ... of the rows. Equal sizes make arrays of one shape, so that one call of a library serves many groups.
    """
    sizes = np.bincount(member)
    for size in np.unique(sizes):
        groups = np.flatnonzero(sizes == size)
        yield groups, np.stack([np.flatnonzero(member != group) for group in groups])


def jackknife(value: float, parts: np.ndarray, confidence: float = 0.95) -> Interval:
    """Normal limits around a value with the standard error of a delete-a-group jackknife.

    parts: [groups] the value without each group. (NaN, NaN) for fewer than two groups. Sources: Quenouille 1956,
    doi:10.1093/biomet/43.3-4.353; Kott 2001, Journal of Official Statistics 17(4), 521-526 (groups of clusters); Arvesen 1969,
    doi:10.1214/aoms/1177697287 (U statistics).
    """
    groups = len(parts)
    if groups < 2:
        return NONE
    error = math.sqrt((groups - 1) / groups * float(((parts - parts.mean()) ** 2).sum()))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return value - half, value + half
