"""Spearman's rank correlation with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from palimpsest.metrics.contract import Metric

METRICS = (
    Metric(
        name="rank_correlation",
        title="Spearman's rank correlation",
        direction="none",
        bounds=(-1.0, 1.0),
        needs="verdicts",
        definition_id="rank_correlation/1",
        reference="Spearman 1904; interval: Bonett and Wright 2000, doi:10.1007/BF02294183",
    ),
)


def rank_correlation(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float] | None:
    """Spearman's correlation of two samples of n, equals sharing their mean rank, with its interval: (r, low, high).

    None for n < 5 or when one side is constant. The interval is Fisher's transformation with variance (1 + r^2 / 2) / (n - 3).
    Source: Bonett and Wright 2000, doi:10.1007/BF02294183. Raises ValueError for samples of different length.
    """
    if len(a) != len(b):
        raise ValueError(f"a correlation needs pairs: {len(a)} and {len(b)} values")
    n = len(a)
    if n < 5:
        return None
    centred = [[rank - (n - 1) / 2 for rank in ranks(values)] for values in (a, b)]
    squares = [sum(x * x for x in own) for own in centred]
    if not all(squares):
        return None
    r = sum(x * y for x, y in zip(*centred, strict=True)) / math.sqrt(squares[0] * squares[1])
    if abs(r) > 1 - 1e-12:
        whole = math.copysign(1.0, r)
        return whole, whole, whole
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt((1 + r * r / 2) / (n - 3))
    return r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0, in the order of the values; equals share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for place in order[start:stop]:
            found[place] = (start + stop - 1) / 2
        start = stop
    return found
