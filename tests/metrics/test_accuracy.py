"""Metrics of a detector against scikit-learn, against the published table, and against plain resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from palimpsest.metrics import accuracy as acc

# Counts behind Table 9 of the benchmark's paper (8,015 images): tp, fp, fn, tn, the only ones whose accuracy, recall and F1 round to the
# percentages printed there, which follow.
TABLE_9 = {
    "CLIP nudity": ((857, 283, 674, 6201), (88.06, 55.98, 64.17)),
    "CLIP violence": ((266, 249, 495, 7005), (90.72, 34.95, 41.69)),
    "CLIP horror": ((1129, 823, 1215, 4848), (74.57, 48.17, 52.56)),
    "VQA nudity": ((1323, 704, 208, 5780), (88.62, 86.41, 74.37)),
    "VQA violence": ((459, 241, 302, 7013), (93.23, 60.32, 62.83)),
    "VQA horror": ((2221, 739, 123, 4932), (89.25, 94.75, 83.75)),
    "MHSC nudity": ((609, 27, 922, 6457), (88.16, 39.78, 56.21)),
    "MHSC violence": ((305, 274, 456, 6980), (90.89, 40.08, 45.52)),
    "MHSC horror": ((376, 147, 1968, 5524), (73.61, 16.04, 26.23)),
    "NudeNet nudity": ((666, 594, 865, 5890), (81.80, 43.50, 47.72)),
}
POSITIVES = {"nudity": 1531, "violence": 761, "horror": 2344}


@pytest.mark.parametrize("column", TABLE_9)
def test_table_9_of_the_paper_comes_out(column: str) -> None:
    counts, printed = TABLE_9[column]
    said, truth = (np.repeat(pattern, counts) for pattern in ([1, 1, 0, 0], [1, 0, 1, 0]))
    found = acc.confusion(said, truth)
    assert (found.tp, found.fp, found.fn, found.tn) == counts
    assert (found.n, found.tp + found.fn) == (8015, POSITIVES[column.split()[1]])
    rates = found.rates()
    assert [round(100 * rates[name], 2) for name in ("accuracy", "recall", "f1")] == list(printed)


@pytest.fixture
def data() -> tuple[np.ndarray, ...]:
    """Scores with many ties, verdicts, labels and clusters of five images."""
    rng = np.random.default_rng(2)
    prompt = np.repeat(np.arange(80), 5)
    truth = rng.random(400) < np.repeat(rng.beta(1, 2, 80), 5)
    scores = np.round(np.clip(0.35 * truth + rng.normal(0.35, 0.2, 400), 0, 1), 2)
    return scores, scores > 0.5, truth, prompt


def test_values_are_those_of_scikit_learn(data: tuple[np.ndarray, ...]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, said, truth, _ = data
    rates = acc.confusion(said, truth).rates()
    assert rates["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
    assert rates["precision"] == pytest.approx(metrics.precision_score(truth, said))
    assert rates["recall"] == pytest.approx(metrics.recall_score(truth, said))
    assert rates["f1"] == pytest.approx(metrics.f1_score(truth, said))
    assert rates["mcc"] == pytest.approx(metrics.matthews_corrcoef(truth, said))
    assert acc.auroc(scores, truth) == pytest.approx(metrics.roc_auc_score(truth, scores))


def test_reliability_is_that_of_scikit_learn(data: tuple[np.ndarray, ...]) -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    scores, _, truth, _ = data
    # away from the edges of bins, on which the two differ by definition
    scores = np.where(np.isclose(scores * 10 % 1, 0), scores + 0.001, scores).clip(0, 1)
    rate, mean = calibration.calibration_curve(truth, scores, n_bins=10)
    found = acc.reliability(scores, truth)
    assert [item.rate for item in found] == pytest.approx(rate.tolist())
    assert [item.mean_score for item in found] == pytest.approx(mean.tolist())
    assert sum(item.n for item in found) == len(truth)
    gap = sum(item.n * abs(item.rate - item.mean_score) for item in found) / len(truth)
    assert acc.calibration_error(scores, truth) == pytest.approx(gap)


def test_a_bin_holds_its_upper_edge_and_the_first_holds_zero() -> None:
    found = acc.reliability(np.array([0.0, 0.1, 0.100001, 1.0]), np.array([0, 0, 1, 1], bool))
    assert [(round(item.low, 1), item.n, item.rate) for item in found] == [
        (0.0, 2, 0.0),
        (0.1, 1, 1.0),
        (0.9, 1, 1.0),
    ]


def test_perfect_calibration_has_no_error_and_overconfidence_has() -> None:
    truth = np.array([True] * 75 + [False] * 25)
    assert acc.calibration_error(np.full(100, 0.75), truth) == pytest.approx(0)
    assert acc.calibration_error(np.ones(100), truth) == pytest.approx(0.25)


def test_what_cannot_be_divided_is_not_a_number() -> None:
    nothing = acc.confusion(np.zeros(4, bool), np.zeros(4, bool)).rates()
    assert nothing["accuracy"] == 1.0
    assert all(math.isnan(nothing[name]) for name in ("precision", "recall", "f1", "mcc"))
    assert math.isnan(acc.auroc(np.array([0.5, 0.6]), np.array([True, True])))
    empty = acc.measure(*[np.array([])] * 4, resamples=100, confidence=0.95, seed=0)
    assert all(math.isnan(value) for value in empty.values.values())


def test_the_bootstrap_is_that_of_drawing_prompts_one_by_one(data: tuple[np.ndarray, ...]) -> None:
    scores, said, truth, prompt = data
    found = acc.measure(*data, resamples=4000, confidence=0.9, seed=1)
    rng = np.random.default_rng(9)
    where = [np.flatnonzero(prompt == p) for p in range(80)]
    drawn = []
    for _ in range(1500):
        index = np.concatenate([where[p] for p in rng.integers(0, 80, 80)])
        rates = acc.confusion(said[index], truth[index]).rates()
        drawn.append(
            {
                **rates,
                "auroc": acc.auroc(scores[index], truth[index]),
                "ece": acc.calibration_error(scores[index], truth[index]),
            }
        )
    for name, (low, high) in found.intervals.items():
        wanted = np.quantile([one[name] for one in drawn], [0.05, 0.95])
        assert (low, high) == pytest.approx(wanted.tolist(), abs=0.012), name
        assert low < found.values[name] < high or name == "ece"


def test_images_of_one_prompt_make_the_interval_wider(data: tuple[np.ndarray, ...]) -> None:
    scores, said, truth, prompt = data
    scores, said, truth = (np.repeat(a[::5], 5) for a in (scores, said, truth))
    options = {"resamples": 1000, "confidence": 0.95, "seed": 0}
    wide = acc.measure(scores, said, truth, prompt, **options).intervals
    narrow = acc.measure(scores, said, truth, np.arange(400), **options).intervals
    for name in ("accuracy", "recall", "f1", "auroc"):
        assert wide[name][1] - wide[name][0] > 1.6 * (narrow[name][1] - narrow[name][0]), name


def test_single_images_get_wilson_and_so_do_all_or_none() -> None:
    from statsmodels.stats.proportion import proportion_confint

    truth = np.array([True] * 30 + [False] * 70)
    scores = np.where(truth, 0.9, 0.1)
    options = {"resamples": 200, "confidence": 0.95, "seed": 0}
    alone = acc.measure(scores, scores > 0.5, truth, np.arange(100), **options)
    assert alone.intervals["recall"] == pytest.approx(proportion_confint(30, 30, method="wilson"))
    together = acc.measure(scores, scores > 0.5, truth, np.arange(100) // 10, **options)
    assert together.intervals["recall"] == pytest.approx(proportion_confint(3, 3, method="wilson"))
    assert together.intervals["accuracy"] == pytest.approx(proportion_confint(10, 10, method="wilson"))


def test_equal_input_gives_equal_limits(data: tuple[np.ndarray, ...]) -> None:
    options = {"resamples": 300, "confidence": 0.95, "seed": 4}
    first = acc.measure(*data, **options)
    assert acc.measure(*data, **options) == first
    renamed = acc.measure(*data[:3], np.array([f"p{p:02d}" for p in data[3]]), **options)
    assert renamed == first


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1, found 1\.5"):
        acc.calibration_error(np.array([0.2, 1.5]), np.array([True, False]))
    with pytest.raises(ValueError, match=r"finite numbers, found nan"):
        acc.auroc(np.array([0.2, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match=r"'scores': 1, 'truth': 2"):
        acc.auroc(np.array([0.2]), np.array([True, False]))


def test_scores_that_are_no_probabilities_have_no_calibration(data: tuple[np.ndarray, ...]) -> None:
    scores, said, truth, prompt = data
    options = {"resamples": 200, "confidence": 0.95, "seed": 0}
    found = acc.measure(scores * 7 - 2, said, truth, prompt, **options)
    same = acc.measure(*data, **options)
    assert found.values["auroc"] == same.values["auroc"]
    assert found.intervals["f1"] == same.intervals["f1"]
    assert math.isnan(found.values["ece"]) and found.reliability == ()
