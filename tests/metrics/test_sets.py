"""FID and KID against torchmetrics, scipy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from palimpsest.metrics import frechet, kernel, sets

RNG = np.random.default_rng(5)


def features(n: int, width: int, shift: float = 0.0) -> np.ndarray:
    """Correlated features, as a network's are."""
    mixing = np.random.default_rng(width).normal(size=(width, width)) / np.sqrt(width)
    return RNG.normal(size=(n, width)) @ mixing + shift


class Given(torch.nn.Module):
    """An extractor for torchmetrics that returns the features it is given as pictures."""

    num_features = 12

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.flatten(1)


@pytest.mark.parametrize("n", [300, 40])
def test_fid_is_torchmetrics_fid(n: int) -> None:
    a, b = features(n, 12), features(n, 12, 0.4)
    metric = FrechetInceptionDistance(feature=Given(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(a).view(n, 3, 2, 2), real=True)
    metric.update(torch.from_numpy(b).view(n, 3, 2, 2), real=False)
    assert frechet.fid(a, b) == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.parametrize(("n", "width"), [(200, 16), (20, 48)])
def test_fid_is_the_formula_with_scipys_matrix_root(n: int, width: int) -> None:
    a, b = features(n, width), features(n, width, 0.2)
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    gap = a.mean(axis=0) - b.mean(axis=0)
    expected = gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet.fid(a, b) == pytest.approx(expected, rel=1e-4)


def test_fid_of_a_set_with_itself_is_nothing_and_of_a_shift_its_square() -> None:
    a = features(60, 8)
    assert frechet.fid(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet.fid(a, a + 3.0) == pytest.approx(8 * 9.0)
    assert frechet.fid(a.astype(np.float32), a.astype(np.float32) + np.float32(100)) == pytest.approx(
        8 * 1e4, rel=1e-6
    )


def test_kid_is_torchmetrics_kid() -> None:
    a, b = features(50, 12), features(50, 12, 0.3)
    metric = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=50)
    metric.update(torch.from_numpy(a).view(50, 3, 2, 2), real=True)
    metric.update(torch.from_numpy(b).view(50, 3, 2, 2), real=False)
    expected = float(metric.compute()[0])
    assert kernel.kid(a, b) == pytest.approx(expected, rel=1e-9)
    mean, deviation = kernel.kid_subsets(a, b, subsets=3, size=50)
    assert mean == pytest.approx(expected, rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9)


def test_pairs_of_one_prompt_are_left_out_where_rows_are_pairs() -> None:
    """Two pictures of one seed are alike: with their pairs in it, KID of two equal distributions is far below 0."""
    plain, paired = [], []
    for _ in range(200):
        common = features(24, 6)
        a, b = (common + 0.1 * RNG.normal(size=common.shape) for _ in range(2))
        plain.append(kernel.kid(a, b))
        paired.append(kernel.kid(a, b, paired=True))
    assert abs(np.mean(paired)) < 4 * np.std(paired) / np.sqrt(len(paired))
    assert np.mean(plain) < -10 * np.std(paired) / np.sqrt(len(paired))
    a, b = features(9, 4), features(9, 4)
    kernels = [(x @ y.T / 4 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    expected = [np.mean([k[i, j] for i in range(9) for j in range(9) if i != j]) for k in kernels]
    assert kernel.kid(a, b, paired=True) == pytest.approx(expected[0] + expected[1] - 2 * expected[2])


def test_kid_of_two_sets_of_one_kind_has_no_bias() -> None:
    values = [kernel.kid(features(20, 6), features(20, 6)) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0
    biased = [frechet.fid(features(20, 6), features(20, 6)) for _ in range(50)]
    assert np.mean(biased) > 0.5  # FID has, which is why unequal sets are refused


@pytest.mark.parametrize("measure", [frechet.fid, kernel.kid, kernel.kid_subsets])
def test_unequal_sets_are_refused(measure: object) -> None:
    with pytest.raises(ValueError, match=r"sets of 20 and 21 pictures cannot be compared"):
        measure(features(20, 4), features(21, 4))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"equal width, got \(20, 4\) and \(20, 5\)"):
        measure(features(20, 4), features(20, 5))  # type: ignore[operator]


def test_subsets_cannot_be_larger_than_the_sets() -> None:
    with pytest.raises(ValueError, match=r"subsets of 1000 pictures from sets of 20: give a size in 2\.\.20"):
        kernel.kid_subsets(features(20, 4), features(20, 4))


def test_leaving_out_a_group_of_prompts_is_the_measure_without_them() -> None:
    a, b = features(120, 5), features(120, 5, 0.5)
    prompts = np.array([f"coco/{i // 3}" for i in range(120)])
    value, (low, high) = kernel.kid_interval(a, b, prompts)
    assert value == pytest.approx(kernel.kid(a, b))
    member = sets.groups_of(prompts)
    parts = [kernel.kid(a[member != group], b[member != group]) for group in range(member.max() + 1)]
    expected = sets.jackknife(value, np.array(parts))
    assert (low, high) == pytest.approx(expected)
    assert frechet.fid_interval(a, b, prompts)[0] < frechet.fid(a, b) < frechet.fid_interval(a, b, prompts)[1]


def test_groups_hold_whole_prompts_and_are_nearly_equal() -> None:
    prompts = np.repeat(np.arange(130), 2)
    member = sets.groups_of(prompts)
    assert member.max() + 1 == sets.GROUPS
    assert (member[::2] == member[1::2]).all()
    assert np.ptp(np.bincount(member)) <= 2
    assert sets.groups_of(np.arange(7)).max() == 6


def test_the_interval_of_kid_covers_its_expectation() -> None:
    """Sets of 60 prompts with 3 pictures that share much: prompts are what was sampled."""
    rng = np.random.default_rng(2)

    def drawn() -> tuple[np.ndarray, np.ndarray]:
        common = rng.normal(size=(60, 1, 4))
        noise = 0.4 * rng.normal(size=(2, 60, 3, 4))
        a, b = common + noise[0], 1.2 * common + 0.5 + noise[1]
        return a.reshape(180, 4), b.reshape(180, 4)

    prompts = np.repeat(np.arange(60), 3)
    runs = [kernel.kid_interval(*drawn(), prompts) for _ in range(250)]
    truth = float(np.mean([value for value, _ in runs]))
    covered = np.mean([low <= truth <= high for _, (low, high) in runs])
    naive = []
    for _ in range(100):
        low, high = kernel.kid_interval(*drawn(), np.arange(180))[1]
        naive.append(low <= truth <= high)
    assert covered > 0.91
    assert np.mean(naive) < covered - 0.05


def test_too_few_prompts_have_no_interval() -> None:
    a, b = features(10, 3), features(10, 3)
    assert np.isnan(frechet.fid_interval(a, b, np.zeros(10))).all()
    assert np.isnan(kernel.kid_interval(a, b, np.zeros(10))[1]).all()
