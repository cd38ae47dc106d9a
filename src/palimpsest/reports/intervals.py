"""Interval arithmetic for sentences about differences, from the marginal intervals of the cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.metrics import intervals


@dataclass(frozen=True)
class Estimate:
    """A value with a confidence interval, in the unit of the value."""

    value: float
    low: float
    high: float

    @property
    def covers_zero(self) -> bool:
        """Whether 0 lies within the interval, limits included."""
        return self.low <= 0 <= self.high


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b with an interval by the method of variance estimates recovery (Zou and Donner 2008, Statistics in Medicine 27:1693).

    It takes the two errors as independent. Rates on the same prompts err in the same direction, so the interval is rather too wide
    than too narrow: a difference that is asserted has been shown, one that is not may still exist.
    """
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, low, high)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean with the mean of the limits as its interval: right when the errors are fully correlated, too wide otherwise.

    Variants are judged on the same prompts, so their errors are correlated to an unknown degree. Raises ValueError without estimates.
    """
    if not estimates:
        raise ValueError("the mean of no estimates is undefined; give at least one")
    n = len(estimates)
    return Estimate(
        sum(e.value for e in estimates) / n,
        sum(e.low for e in estimates) / n,
        sum(e.high for e in estimates) / n,
    )


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """A rate with Wilson's score interval (Wilson 1927, JASA 22:209), for rates whose rows bring no interval of their own."""
    if n <= 0:
        raise ValueError(f"a rate needs at least one observation, got n = {n}")
    low, high = intervals.wilson(successes, n, confidence)
    return Estimate(successes / n, low, high)
