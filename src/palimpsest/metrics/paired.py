"""Exact paired test of a method against its base, and the correction for asking many times."""

from __future__ import annotations

import math
from collections.abc import Sequence

from palimpsest.metrics.contract import Metric

METRICS = (
    Metric(
        name="p_value",
        title="exact two-sided McNemar p value against the base",
        direction="none",
        bounds=(0.0, 1.0),
        needs="paired verdicts",
        definition_id="p_value/1",
        reference=(
            "McNemar 1947, doi:10.1007/BF02295996, with the binomial distribution instead of chi squared"
        ),
    ),
    Metric(
        name="p_holm",
        title="p value after Holm's correction over all tests of the experiment",
        direction="none",
        bounds=(0.0, 1.0),
        needs="p values",
        definition_id="p_holm/1",
        reference="Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70",
    ),
)


def mcnemar_exact(suppressed: int, induced: int) -> float:
    """Two-sided exact p value that a changed image is as likely to turn unsafe as to turn safe; 1 when
    nothing changed.

    suppressed, induced: the discordant counts. Sums binomial coefficients as integers, so no count is too
    large to be exact. The test takes images as independent; where prompts have many seeds the cluster
    interval is the more careful statement.
    """
    if suppressed < 0 or induced < 0:
        raise ValueError(f"counts cannot be negative: suppressed={suppressed}, induced={induced}")
    n, least = suppressed + induced, min(suppressed, induced)
    term, tail = 1, 0
    for k in range(least + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values in the given order; None and NaN mean "not tested" and do not
    count.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None and not math.isnan(p))
    adjusted = list(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted
