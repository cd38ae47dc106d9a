"""Chance-corrected agreement against a library, published examples and definitions written out in loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from palimpsest.metrics import agreement as ag

# Krippendorff 2011, section B-D: four observers, twelve units, five categories, with missing values. Alpha is 0.743; Gwet's
# handbook uses the same data, with AC1 = 0.77544.
PUBLISHED = (
    np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
            [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
        ]
    ).T
    - 1
)


@pytest.fixture
def ratings() -> np.ndarray:
    """Three raters, sixty images, three categories; they mostly agree."""
    rng = np.random.default_rng(5)
    truth = rng.choice(3, size=60, p=[0.7, 0.2, 0.1])
    wrong = rng.random((60, 3)) < 0.2
    return np.where(wrong, rng.integers(0, 3, (60, 3)), truth[:, None])


def test_the_published_example_comes_out() -> None:
    counts = ag.counts_of(PUBLISHED, 5)
    assert round(ag.krippendorff_alpha(counts), 3) == 0.743
    assert round(ag.gwet_ac1(counts), 5) == 0.77544


def test_kappa_is_that_of_statsmodels(ratings: np.ndarray) -> None:
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    table, _ = inter_rater.aggregate_raters(ratings)
    counts = ag.counts_of(ratings, 3)
    assert np.array_equal(table, counts)
    assert ag.fleiss_kappa(counts) == pytest.approx(inter_rater.fleiss_kappa(table), abs=1e-12)


def test_alpha_is_observed_over_expected_disagreement_of_pairs(ratings: np.ndarray) -> None:
    ratings = ratings.copy()
    ratings[::4, 0] = ratings[::8, 1] = ag.MISSING
    values, within, weight = [], 0.0, 0
    for row in ratings:
        given = [int(v) for v in row if v != ag.MISSING]
        if len(given) < 2:
            continue
        values += given
        pairs = list(itertools.permutations(given, 2))
        within += sum(a != b for a, b in pairs) / (len(given) - 1)
        weight += len(given)
    everyone = list(itertools.permutations(values, 2))
    expected = sum(a != b for a, b in everyone) / len(everyone)
    found = ag.krippendorff_alpha(ag.counts_of(ratings, 3))
    assert found == pytest.approx(1 - within / weight / expected, abs=1e-12)


def test_ac1_of_two_raters_and_two_categories_by_hand() -> None:
    # 118 + 2 agreements out of 125, yes given 118 + 123 times out of 250
    ratings = np.array([[1, 1]] * 118 + [[1, 0]] * 0 + [[0, 1]] * 5 + [[0, 0]] * 2)
    share = (118 + 123) / 250
    chance = 2 * share * (1 - share)
    assert ag.gwet_ac1(ag.counts_of(ratings, 2)) == pytest.approx((120 / 125 - chance) / (1 - chance))


def test_a_rare_theme_lowers_kappa_and_not_ac1() -> None:
    rare = np.array([[0, 0, 0]] * 195 + [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]])
    found = {item.name: item.value for item in ag.agreement(rare, 2, resamples=100)}
    assert found["gwet_ac1"] > 0.95 > 0.6 > found["fleiss_kappa"]


def test_kappa_needs_equally_many_ratings() -> None:
    with pytest.raises(ValueError, match=r"equally many ratings.*\[2, 3\]"):
        ag.fleiss_kappa(ag.counts_of(np.array([[0, 1, 1], [0, 1, ag.MISSING]]), 2))
    found = ag.agreement(np.array([[0, 0, 0], [1, 1, 1], [0, 1, ag.MISSING]]), 2, resamples=100)
    by_name = {item.name: item for item in found}
    assert (by_name["fleiss_kappa"].n, by_name["fleiss_kappa"].value) == (2, 1.0)
    assert by_name["krippendorff_alpha"].n == 3
    assert by_name["krippendorff_alpha"].n_ratings == 8


@pytest.mark.parametrize("bad", [np.array([[0, 2]]), np.array([[0.0, 1.0]]), np.array([0, 1])])
def test_ratings_that_are_none_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"rating 2 is no category|must be integers"):
        ag.counts_of(bad, 2)


def test_nothing_to_agree_on_is_not_agreement() -> None:
    same = np.zeros((5, 3), int)
    for item in ag.agreement(same, 2, resamples=100):
        assert math.isnan(item.value) == (item.name != "gwet_ac1")
    for item in ag.agreement(np.full((4, 2), ag.MISSING), 2, resamples=100):
        assert math.isnan(item.value) and math.isnan(item.low) and item.n == 0


def test_intervals_hold_the_value_and_do_not_hang_on_the_order(ratings: np.ndarray) -> None:
    found = ag.agreement(ratings, 3, seed=3)
    order = np.random.default_rng(0).permutation(len(ratings))
    assert ag.agreement(ratings[order][:, ::-1], 3, seed=3) == found
    for item in found:
        assert item.low < item.value < item.high
        assert item.high - item.low < 0.5


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Two raters who each copy a hidden truth or guess: their alpha is known, and a 90 % interval should hold it in 90 % of samples."""
    rng = np.random.default_rng(11)

    def sample(n: int) -> np.ndarray:
        truth = rng.integers(0, 2, n)
        guess = rng.random((n, 2)) < 0.3
        return np.where(guess, rng.integers(0, 2, (n, 2)), truth[:, None])

    true = 0.7**2  # both copy; otherwise they agree only by chance, of a half
    held = [
        item.low <= true <= item.high
        for _ in range(200)
        for item in ag.agreement(sample(150), 2, resamples=300, confidence=0.9)
        if item.name == "krippendorff_alpha"
    ]
    assert 0.84 <= np.mean(held) <= 0.95
