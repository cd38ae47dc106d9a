"""KID: the squared maximum mean discrepancy of two sets of pictures under a cubic kernel of a network's features.

Unbiased: sets of other sizes have the same expectation, so it may be negative where both sets are alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from palimpsest.metrics import sets
from palimpsest.metrics.contract import Metric
from palimpsest.metrics.intervals import Interval

SOURCE = "Binkowski et al. 2018, arXiv:1801.01401: unbiased MMD^2 with kernel (x.y / d + 1)^3"
MICRO = "32 features of the micro world's picture network; not comparable with any published KID"
SUBSETS, SUBSET_SIZE = 100, 1000


def _metric(name: str, title: str, how: str) -> Metric:
    return Metric(
        name=name,
        title=title,
        direction="lower",
        bounds=(None, None),
        needs="image sets",
        definition_id=f"{name}/1",
        reference=f"{SOURCE}; {how}",
    )


METRICS = (
    _metric(
        "kid_clean",
        "KID to real pictures, resized as clean-fid does",
        "over all pictures, without pairs of one prompt",
    ),
    _metric("kid_micro", "micro world's KID to drawn pictures", MICRO),
    _metric(
        "kid_base_clean",
        "KID to the base model's pictures, resized as clean-fid does",
        "over all pictures, without pairs of one prompt",
    ),
    _metric("kid_base_micro", "micro world's KID to the base model's pictures", MICRO),
)


def kid(features: np.ndarray, others: np.ndarray, *, paired: bool = False) -> float:
    """Unbiased KID of all rows of two feature matrices float [n, d], n equal. Raises ValueError for unequal n.

    paired: row i of both is one prompt, perhaps one seed. Such rows are alike beyond what their sets are, so the kernel of row i with row i
    is left out across the sets, as it is within them (Gretton et al. 2012, JMLR 13:723, equation 4); with it, KID would be far below 0.
    """
    a, b = sets.checked(features, others)
    return _whole(a, b, paired)


def kid_interval(
    features: np.ndarray,
    others: np.ndarray,
    prompts: np.ndarray,
    confidence: float = 0.95,
    *,
    paired: bool = False,
) -> tuple[float, Interval]:
    """KID of all rows, and its interval from a jackknife over groups of prompts: row i of both matrices belongs to prompt [n] i.

    Sums of the kernel are kept per pair of groups, so leaving a group out costs nothing.
    """
    a, b = sets.checked(features, others)
    if len(prompts) != len(a):
        raise ValueError(f"{len(prompts)} prompts for {len(a)} pictures: one per row is needed")
    member = sets.groups_of(np.asarray(prompts))
    count = int(member.max()) + 1
    sizes = np.bincount(member, minlength=count)
    sums = _block_sums(a, b, member, count)
    value = float(_unbiased([part[None] for part in sums], sizes[None], paired)[0])
    if len(a) - sizes.max() < 2:
        return value, sets.NONE

    parts = np.empty(count)
    for groups, kept in sets.without_each(np.arange(count)):
        rest = [part[kept[:, None], kept[:, :, None]] if part.ndim == 2 else part[kept] for part in sums]
        parts[groups] = _unbiased(rest, sizes[kept], paired)
    return value, sets.jackknife(value, parts, confidence)


def _whole(a: np.ndarray, b: np.ndarray, paired: bool) -> float:
    """KID of all rows."""
    sums = _block_sums(a, b, np.zeros(len(a), np.int64), 1)
    return float(_unbiased([part[None] for part in sums], np.array([[len(a)]]), paired)[0])


def kid_subsets(
    features: np.ndarray,
    others: np.ndarray,
    *,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and standard deviation of KID over random subsets drawn without replacement, as published: 100 of 1000 pictures.

    The deviation is that of one subset, not the error of the mean. Raises ValueError for unequal n, or subsets larger than the sets.
    """
    a, b = sets.checked(features, others)
    if not 2 <= size <= len(a):
        raise ValueError(f"subsets of {size} pictures from sets of {len(a)}: give a size in 2..{len(a)}")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        left, right = (rng.permutation(len(a))[:size] for _ in range(2))
        values.append(_whole(a[left], b[right], paired=False))
    return float(np.mean(values)), float(np.std(values))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _block_sums(a: np.ndarray, b: np.ndarray, member: np.ndarray, count: int) -> list[np.ndarray]:
    """Kernel sums between groups: within a, within b, across, each [groups, groups]; and their three diagonals, each [groups]."""
    indicator = np.eye(count)[member]
    rows = np.array_split(np.arange(len(a)), max(1, len(a) // 1000))
    found = []
    for left, right in ((a, a), (b, b), (a, b)):
        total = np.zeros((count, count))
        for part in rows:  # a kernel matrix of ten thousand pictures has a hundred million numbers
            total += indicator[part].T @ (_kernel(left[part], right) @ indicator)
        found.append(total)
    pairs = ((a, a), (b, b), (a, b))
    diagonals = [((x * y).sum(axis=1) / x.shape[1] + 1) ** 3 @ indicator for x, y in pairs]
    return [*found, *diagonals]


def _unbiased(sums: Sequence[np.ndarray], sizes: np.ndarray, paired: bool) -> np.ndarray:
    """KID [k] from k times the sums of `_block_sums` [k, groups, groups] and [k, groups]; sizes: int [k, groups] pictures."""
    n = sizes.sum(axis=1)
    within_a, within_b, across, own_a, own_b, own = (part.reshape(len(part), -1).sum(axis=1) for part in sums)
    pairs = n * (n - 1)
    between = (across - own) / pairs if paired else across / n**2
    found: np.ndarray = (within_a - own_a + within_b - own_b) / pairs - 2 * between
    return found
