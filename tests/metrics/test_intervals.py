"""Wilson against statsmodels; the cluster bootstrap by its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from palimpsest.metrics import intervals


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (1, 30), (17, 60), (700, 8015)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_statsmodels_wilson(successes: int, n: int, confidence: float) -> None:
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert intervals.wilson(successes, n, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_of_nothing() -> None:
    assert all(math.isnan(limit) for limit in intervals.wilson(0, 0))
    with pytest.raises(ValueError, match=r"successes=4, n=3"):
        intervals.wilson(4, 3)


def simulate(rng: np.random.Generator, prompts: int, seeds: int) -> tuple[np.ndarray, ...]:
    """Verdicts of prompts that differ in how unsafe they are; the method keeps an unsafe image with a
    prompt's own probability.
    """
    draws = rng.beta(1.2, 1.8, size=(prompts, 1))
    keeps = rng.beta(0.8, 1.2, size=(prompts, 1))
    base = rng.random((prompts, seeds)) < draws
    method = base & (rng.random((prompts, seeds)) < keeps)
    ids = np.repeat(np.arange(prompts), seeds)
    return base.ravel(), method.ravel(), ids, np.full(prompts * seeds, "template")


def covered(limits: tuple[float, float], truth: float) -> bool:
    return limits[0] <= truth <= limits[1]


def test_coverage_of_the_clustered_interval_and_failure_of_the_naive_one() -> None:
    rng = np.random.default_rng(7)
    truth, runs = 1 - 0.8 / 2.0, 1200
    options = {"resamples": 400, "confidence": 0.95}
    clustered = naive = 0
    for run in range(runs):
        base, method, prompts, sources = simulate(rng, prompts=120, seeds=10)
        clustered += covered(
            intervals.ep_interval(base, method, prompts, sources, seed=run, **options), truth
        )
        naive += covered(
            intervals.ep_interval(base, method, np.arange(len(base)), sources, seed=run, **options), truth
        )
    assert 0.93 <= clustered / runs <= 0.97
    assert naive / runs < 0.80


def example() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3)
    base, method, prompts, _ = simulate(rng, prompts=30, seeds=6)
    return base, method, prompts, np.where(prompts < 10, "i2p", "lexica")


def clusters_of(
    base: np.ndarray, method: np.ndarray, prompts: np.ndarray, sources: np.ndarray
) -> list[np.ndarray]:
    """Unsafe images of each prompt before and after, per source."""
    places = [sources == source for source in np.unique(sources)]
    return [
        intervals.cluster_sums(base[here], method[here], np.unique(prompts[here], return_inverse=True)[1])
        for here in places
    ]


def test_equal_input_gives_equal_limits_in_any_order() -> None:
    options = {"resamples": 500, "confidence": 0.95}
    arrays = example()
    first = intervals.ep_interval(*arrays, seed=5, **options)
    order = np.random.default_rng(0).permutation(len(arrays[0]))
    assert intervals.ep_interval(*(a[order] for a in arrays), seed=5, **options) == first
    assert intervals.ep_interval(*arrays, seed=6, **options) != first


def test_merging_equal_prompts_leaves_the_distribution_alone() -> None:
    base, method, prompts, sources = example()
    clusters = clusters_of(base, method, prompts, sources)
    before, after = intervals._resample(clusters, 20000, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    plain = sum(sums[rng.integers(0, len(sums), (20000, len(sums)))].sum(axis=1) for sums in clusters)
    for merged, direct in ((before, plain[:, 0]), (after, plain[:, 1])):
        assert merged.mean() == pytest.approx(direct.mean(), rel=0.01)
        assert merged.std() == pytest.approx(direct.std(), rel=0.03)


def test_strata_keep_their_size() -> None:
    base = np.array([True] * 20 + [False] * 20)
    sources = np.array(["a"] * 20 + ["b"] * 20)
    clusters = clusters_of(base, base, np.arange(40), sources)
    before, _ = intervals._resample(clusters, 200, np.random.default_rng(0))
    assert set(before) == {20}


def test_one_prompt_or_none_has_no_interval() -> None:
    base = np.array([True, True, False, False])
    args = {"resamples": 100, "confidence": 0.95, "seed": 0}
    limits = intervals.ep_interval(base, base, np.array([0, 0, 1, 1]), np.full(4, "a"), **args)
    assert all(math.isnan(limit) for limit in limits)
    none = np.zeros(4, bool)
    assert all(
        math.isnan(limit)
        for limit in intervals.ep_interval(none, base, np.arange(4), np.full(4, "a"), **args)
    )


def test_complete_erasure_still_has_a_lower_limit_below_one() -> None:
    base = np.ones(40, bool)
    prompts = np.repeat(np.arange(10), 4)
    low, high = intervals.ep_interval(
        base, ~base, prompts, np.full(40, "a"), resamples=100, confidence=0.95, seed=0
    )
    assert high == 1.0
    assert low == pytest.approx(1 - proportion_confint(0, 10, method="wilson")[1])


def test_the_interval_of_a_clustered_mean_matches_statsmodels() -> None:
    import statsmodels.api as sm

    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(30), 4)
    values = rng.normal(size=30)[clusters] + rng.normal(size=120)
    fitted = sm.OLS(values, np.ones((120, 1))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}, use_t=False
    )
    assert intervals.mean_interval(values, clusters) == pytest.approx(fitted.conf_int(0.05)[0], rel=1e-9)


def test_a_mean_of_one_cluster_has_no_interval() -> None:
    assert all(np.isnan(intervals.mean_interval(np.ones(5), np.zeros(5))))


def test_coverage_of_the_mean_over_prompts_and_failure_of_the_one_over_images() -> None:
    """Drift, CLIPScore, LPIPS: 60 prompts with 8 seeds, half of the variance between prompts."""
    rng = np.random.default_rng(9)
    runs, prompts, seeds = 2000, 60, 8
    ids = np.repeat(np.arange(prompts), seeds)
    clustered = naive = 0
    for _ in range(runs):
        values = np.repeat(rng.normal(size=prompts), seeds) + rng.normal(size=prompts * seeds) + 0.3
        clustered += covered(intervals.mean_interval(values, ids), 0.3)
        naive += covered(intervals.mean_interval(values, np.arange(len(values))), 0.3)
    assert 0.93 <= clustered / runs <= 0.97
    assert naive / runs < 0.80
