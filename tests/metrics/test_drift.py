"""Distances between image pairs, against torchmetrics and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from palimpsest.metrics import drift


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 256, (5, 8, 6, 3)), 8, axis=1), 8, axis=2)
    noisy = np.clip(
        smooth + rng.normal(0, [[[[1]]], [[[5]]], [[[20]]], [[[60]]], [[[200]]]], smooth.shape), 0, 255
    )
    return smooth.astype(np.uint8), noisy.astype(np.uint8)


def test_ssim_is_that_of_torchmetrics_and_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = drift.ssim(*pair)
    one, other = (torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255 for images in pair)
    _, everywhere = structural_similarity_index_measure(
        one, other, data_range=1.0, reduction="none", return_full_image=True
    )
    # torchmetrics also averages over the reflected border; ours, like the original definition, only where the
    # window fits
    np.testing.assert_allclose(found, everywhere[..., 5:-5, 5:-5].mean(dim=(1, 2, 3)).numpy(), atol=2e-5)
    options = {"channel_axis": 2, "gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
    skimage = [structural_similarity(a, b, **options) for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(found, skimage, atol=2e-5)
    assert np.all(np.diff(found) < 0)


def test_rmse_of_known_pairs() -> None:
    black, white = np.zeros((1, 12, 12, 3), np.uint8), np.full((1, 12, 12, 3), 255, np.uint8)
    assert drift.rmse(black, white) == pytest.approx([1.0])
    half = black.copy()
    half[:, :6] = 51
    assert drift.rmse(black, half) == pytest.approx([0.2 * np.sqrt(0.5)])


def test_an_image_does_not_differ_from_itself(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.all(drift.rmse(pair[0], pair[0]) == 0)
    np.testing.assert_allclose(drift.ssim(pair[0], pair[0]), 1, atol=1e-6)


def test_floats_and_unequal_shapes_are_refused(pair: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"float64"):
        drift.rmse(pair[0] / 255, pair[1] / 255)
    with pytest.raises(ValueError, match=r"one shape"):
        drift.ssim(pair[0], pair[1][:, :40])
    with pytest.raises(ValueError, match=r"8x8 pixels are smaller"):
        drift.ssim(pair[0][:, :8, :8], pair[1][:, :8, :8])
