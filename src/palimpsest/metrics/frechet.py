"""FID: the Frechet distance between two sets of pictures, as normal distributions of a network's features.

Features are stored once per picture (step `quality`), so a distance to another set costs no picture. All arithmetic is in float64.
"""

from __future__ import annotations

import numpy as np

from palimpsest.metrics import sets
from palimpsest.metrics.contract import Metric
from palimpsest.metrics.intervals import Interval

SOURCE = "Heusel et al. 2017, arXiv:1706.08500"
PYTORCH = "resized in the network to 299 x 299, bilinear, no antialiasing (as pytorch-fid 0.3.0)"
CLEAN = "resized to 299 x 299 by PIL's bicubic filter per channel in float, antialiased (clean-fid; Parmar et al. 2022, arXiv:2104.11222)"
MICRO = "32 features of the micro world's picture network; not comparable with any published FID"


def _metric(name: str, title: str, how: str) -> Metric:
    return Metric(
        name=name,
        title=title,
        direction="lower",
        bounds=(0.0, None),
        needs="image sets",
        definition_id=f"{name}/1",
        reference=f"{SOURCE}; {how}",
    )


AT_ONCE = 2**22  # numbers of a set of pictures that are worked on at a time: 32 MiB, and a few copies

METRICS = (
    _metric("fid_pytorch", "FID to real pictures, resized as pytorch-fid does", PYTORCH),
    _metric("fid_clean", "FID to real pictures, resized as clean-fid does", CLEAN),
    _metric("fid_micro", "micro world's FID to drawn pictures", MICRO),
    _metric("fid_base_pytorch", "FID to the base model's pictures, resized as pytorch-fid does", PYTORCH),
    _metric("fid_base_clean", "FID to the base model's pictures, resized as clean-fid does", CLEAN),
    _metric("fid_base_micro", "micro world's FID to the base model's pictures", MICRO),
)


def fid(features: np.ndarray, others: np.ndarray) -> float:
    """|mean - mean'|^2 + tr(C + C' - 2 (C C')^(1/2)) of two feature matrices float [n, d], n equal; covariances divide by n - 1.

    The last trace is the sum of singular values of X Y^T / (n - 1) for centred X, Y, which are those of C^(1/2) C'^(1/2): no root of a
    nearly singular product is taken, so no imaginary part has to be thrown away. Raises ValueError for unequal n.
    """
    a, b = sets.checked(features, others)
    return float(_fid(a[None], b[None])[0])


def fid_interval(
    features: np.ndarray, others: np.ndarray, prompts: np.ndarray, confidence: float = 0.95
) -> Interval:
    """Interval of `fid` from a jackknife over groups of prompts: rows i of both belong to prompt i of [n] and are left out together.

    It speaks about prompts, not about the bias of FID, which both sets have by their size. The lower limit is at least 0.
    """
    a, b = sets.checked(features, others)
    if len(prompts) != len(a):
        raise ValueError(f"{len(prompts)} prompts for {len(a)} pictures: one per row is needed")
    member = sets.groups_of(np.asarray(prompts))
    count = int(member.max()) + 1
    if count < 3:  # a fit without one of two groups has no covariance to speak of
        return sets.NONE
    parts = np.empty(count)
    for groups, rows in sets.without_each(member):
        for at in np.array_split(np.arange(len(groups)), 1 + rows.size * a.shape[1] // AT_ONCE):
            parts[groups[at]] = _fid(a[rows[at]], b[rows[at]])
    low, high = sets.jackknife(fid(a, b), parts, confidence)
    return max(0.0, low), high


def _fid(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """FID [k] of k pairs of sets [k, n, d]."""
    count, n, width = a.shape
    mean, other = a.mean(axis=1), b.mean(axis=1)
    x, y = a - mean[:, None], b - other[:, None]
    # R of x = QR, [d, d]: X Y^T has the singular values of R R'^T, which is small where x is long
    left, right = (x, y) if n <= width else (np.asarray(np.linalg.qr(part, mode="r")) for part in (x, y))
    cross = np.linalg.svd(left @ right.swapaxes(1, 2), compute_uv=False).sum(axis=1) / (n - 1)
    squares = [(part**2).reshape(count, -1).sum(axis=1) for part in (x, y)]
    spread = (squares[0] + squares[1]) / (n - 1)
    found: np.ndarray = np.maximum(0.0, ((mean - other) ** 2).sum(axis=1) + spread - 2 * cross)
    return found
