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


def test_a_line_of_five_pixels_becomes_two_by_their_areas() -> None:
    line = drift._shares(5, 2)
    assert line == pytest.approx(np.array([[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]]))


@pytest.mark.parametrize(("height", "width"), [(512, 512), (768, 512), (64, 600), (300, 300)])
def test_large_images_are_compared_at_256_pixels_and_what_is_stored_at_that_size_gives_the_same(
    height: int, width: int
) -> None:
    rng = np.random.default_rng(1)
    base, erased = (rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8) for _ in range(2))
    small = drift.comparable(base)
    assert max(small.shape[1:3]) == 256 and small.dtype == np.uint8
    assert small.shape[1] / small.shape[2] == pytest.approx(height / width, rel=0.02)
    assert np.array_equal(drift.comparable(small), small)
    for metric in (drift.rmse, drift.ssim):
        whole = metric(base, erased)
        assert np.array_equal(metric(small, erased), whole) and np.all(whole > 0)


def test_a_pixel_of_a_reduced_image_is_the_mean_of_its_area() -> None:
    image = np.random.default_rng(2).integers(0, 256, (1, 512, 512, 3), dtype=np.uint8)
    means = image.reshape(1, 256, 2, 256, 2, 3).mean(axis=(2, 4))
    assert np.abs(drift.comparable(image) - means).max() <= 0.5 + 1e-9
    stripes = np.zeros((1, 512, 512, 3), np.uint8)
    stripes[:, :, ::2] = 255  # finer than the size of comparison shows, so no difference from grey
    assert drift.rmse(stripes, np.full_like(stripes, 128)) == pytest.approx([0.0])


def test_images_of_the_size_of_comparison_and_smaller_are_taken_as_they_are() -> None:
    for size in (64, 256):
        image = np.random.default_rng(3).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        assert drift.comparable(image) is image
