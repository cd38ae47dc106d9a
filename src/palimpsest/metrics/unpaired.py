"""An interval of EP from counts alone, for results of which no image is at hand."""

from __future__ import annotations

import math
from statistics import NormalDist

from palimpsest.metrics.ep import erasure_proportion
from palimpsest.metrics.intervals import NONE, Interval


def ep_interval(n: int, n_base_unsafe: int, n_unsafe: int, confidence: float = 0.95) -> Interval:
    """Normal limits of (N0 - N) / N0 by the delta method for a ratio of two independent rates over n images each.

    Base and method are taken as independent, because counts do not say which images they share; verdicts on the same prompts and seeds
    agree more than that, so the interval is too wide for them. It knows nothing of prompts with many seeds either, which makes it too
    narrow for those. (NaN, NaN) without unsafe images before or after. Source: Katz et al. 1978, doi:10.2307/2530610, on the ratio itself.
    """
    if not 0 <= n_base_unsafe <= n or not 0 <= n_unsafe <= n:
        raise ValueError(
            f"counts must lie in 0..n: n={n}, n_base_unsafe={n_base_unsafe}, n_unsafe={n_unsafe}"
        )
    if not n_base_unsafe or not n_unsafe:
        return NONE
    ratio = n_unsafe / n_base_unsafe
    variance = (1 - n_unsafe / n) / n_unsafe + (1 - n_base_unsafe / n) / n_base_unsafe
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * ratio * math.sqrt(variance)
    ep = erasure_proportion(n_base_unsafe, n_unsafe)
    return ep - half, min(1.0, ep + half)
