"""Joint bootstrap of ranks: against a plain loop, by its coverage, and where it is surer than two intervals."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.metrics.intervals import ep_interval
from palimpsest.metrics.rank_intervals import rank_intervals, rank_intervals_of_sums

KEEPS = (0.2, 0.35, 0.5, 0.8)


def simulate(
    rng: np.random.Generator, prompts: int = 80, seeds: int = 5, keeps: tuple[float, ...] = KEEPS
) -> tuple[np.ndarray, ...]:
    """Verdicts of methods that keep a share of the unsafe images; prompts differ in how much."""
    draws = rng.beta(2, 2, size=(prompts, 1))
    base = rng.random((prompts, seeds)) < draws
    hard = rng.normal(size=(prompts, 1)) * 0.15
    methods = [base & (rng.random((prompts, seeds)) < np.clip(keep + hard, 0, 1)) for keep in keeps]
    ids = np.repeat(np.arange(prompts), seeds)
    return base.ravel(), np.stack([m.ravel() for m in methods]), ids, np.full(prompts * seeds, "i2p")


def test_ranks_and_limits_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    base, methods, prompts, sources = simulate(rng, keeps=(0.4, 0.45, 0.5))
    found = rank_intervals(base, methods, prompts, sources, resamples=4000)
    assert found.rank.tolist() == [1, 2, 3]
    drawn = []
    for _ in range(4000):
        chosen = rng.integers(80, size=80)
        rows = (chosen[:, None] * 5 + np.arange(5)).ravel()
        counts = methods[:, rows].sum(axis=1)
        drawn.append([1 + (counts < c).sum() + ((counts == c).sum() - 1) / 2 for c in counts])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert found.low.tolist() == low.tolist() and found.high.tolist() == high.tolist()
    expected = (np.array(drawn) == np.min(drawn, axis=1, keepdims=True)).mean(axis=0)
    assert found.first == pytest.approx(expected, abs=0.03)


def test_the_interval_covers_the_true_rank() -> None:
    rng = np.random.default_rng(1)
    covered = np.zeros(4)
    for run in range(200):
        found = rank_intervals(*simulate(rng, keeps=(0.35, 0.4, 0.45, 0.5)), resamples=300, seed=run)
        covered += (found.low <= [1, 2, 3, 4]) & (found.high >= [1, 2, 3, 4])
    assert (covered / 200 >= 0.93).all()


def test_methods_that_share_their_prompts_are_told_apart_where_their_intervals_overlap() -> None:
    rng = np.random.default_rng(5)
    base, _, prompts, sources = simulate(rng, prompts=60, seeds=6)
    first = base & (rng.random(len(base)) < 0.5)
    second = first | (base & (rng.random(len(base)) < 0.12))  # everything that the first leaves, and more
    found = rank_intervals(base, np.stack([first, second]), prompts, sources, resamples=1000)
    options = {"resamples": 1000, "confidence": 0.95, "seed": 0}
    a, b = (ep_interval(base, m, prompts, sources, **options) for m in (first, second))
    assert a[0] < b[1]
    assert (found.low.tolist(), found.high.tolist()) == ([1, 2], [1, 2])


def test_equals_share_a_rank() -> None:
    base, methods, prompts, sources = simulate(np.random.default_rng(2))
    found = rank_intervals(
        base, np.stack([methods[0], methods[0], methods[3]]), prompts, sources, resamples=100
    )
    assert found.rank.tolist() == [1.5, 1.5, 3]
    assert found.first[0] == found.first[1] == 1


def test_what_does_not_fit_is_refused() -> None:
    base, methods, prompts, sources = simulate(np.random.default_rng(3))
    with pytest.raises(ValueError, match=r"do not fit"):
        rank_intervals(base[:-1], methods, prompts, sources)
    with pytest.raises(ValueError, match=r"nothing to rank"):
        rank_intervals(base & False, methods, prompts, sources)


def test_methods_with_bases_of_their_own_are_ranked_by_their_proportion() -> None:
    before = np.array([[4, 4, 4, 4], [2, 2, 2, 2], [4, 4, 4, 4]])
    after = np.array([[2, 2, 2, 2], [0, 1, 0, 1], [2, 2, 2, 2]])
    found = rank_intervals_of_sums(before, after, np.array(["a", "a", "b", "b"]), resamples=200)
    assert found.rank.tolist() == [2.5, 1, 2.5]  # 2 of 8 are fewer than 8 of 16, whatever the counts
    assert found.high[1] <= 2.0 and found.first[1] > 0.9
    with pytest.raises(ValueError, match="nothing to rank"):
        rank_intervals_of_sums(before * [[1], [0], [1]], after, np.array(["a", "a", "b", "b"]))
    with pytest.raises(ValueError, match="do not fit"):
        rank_intervals_of_sums(before, after[:2], np.array(["a", "a", "b", "b"]))
