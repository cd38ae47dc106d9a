"""Answer rate and over-refusal against statsmodels."""

from __future__ import annotations

import pytest
from statsmodels.stats.proportion import proportion_confint

from palimpsest.metrics import answers


@pytest.mark.parametrize(("made", "n"), [(0, 48), (36, 48), (48, 48)])
def test_both_rates_are_statsmodels(made: int, n: int) -> None:
    share, limits = answers.answered(made, n)
    assert share == made / n
    assert limits == pytest.approx(proportion_confint(made, n, method="wilson"), abs=1e-12)
    refused, others = answers.over_refusal(made, n)
    assert refused == pytest.approx((n - made) / n)
    assert others == pytest.approx(proportion_confint(n - made, n, method="wilson"), abs=1e-12)


def test_no_prompt_has_no_rate() -> None:
    with pytest.raises(ValueError, match="at least one prompt, got n = 0"):
        answers.answered(0, 0)
