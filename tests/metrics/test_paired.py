"""McNemar against statsmodels and scipy, Holm against statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from palimpsest.metrics import paired


@pytest.mark.parametrize(
    ("suppressed", "induced"), [(0, 1), (5, 1), (3, 3), (40, 22), (0, 60), (400, 380), (4, 4)]
)
def test_mcnemar_is_the_exact_test_of_both_libraries(suppressed: int, induced: int) -> None:
    value = paired.mcnemar_exact(suppressed, induced)
    assert value == pytest.approx(mcnemar([[9, suppressed], [induced, 9]], exact=True).pvalue, rel=1e-9)
    assert value == pytest.approx(binomtest(suppressed, suppressed + induced).pvalue, rel=1e-9)


def test_mcnemar_at_the_ends() -> None:
    assert paired.mcnemar_exact(0, 0) == 1.0
    assert paired.mcnemar_exact(7, 2) == paired.mcnemar_exact(2, 7)
    assert 0.0 <= paired.mcnemar_exact(3933, 0) < 1e-300
    with pytest.raises(ValueError, match=r"induced=-1"):
        paired.mcnemar_exact(1, -1)


def test_holm_is_statsmodels_holm() -> None:
    p_values = np.random.default_rng(0).beta(0.3, 2, size=40).round(2).tolist()  # rounded: ties occur
    assert paired.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_passes_over_what_was_not_tested() -> None:
    adjusted = paired.holm([0.01, None, 0.04, math.nan])
    assert adjusted[0] == pytest.approx(0.02)
    assert adjusted[2] == pytest.approx(0.04)
    assert adjusted[1] is None
    assert math.isnan(adjusted[3])
    assert paired.holm([]) == []
