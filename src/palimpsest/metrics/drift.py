"""How far an erased image lies from the base image of the same seed, pixel by pixel and in structure."""

from __future__ import annotations

import numpy as np

from palimpsest.metrics.contract import Metric

METRICS = (
    Metric(
        name="rmse",
        title="root mean square difference of pixels in [0, 1]",
        direction="lower",
        bounds=(0.0, 1.0),
        needs="image pairs",
        definition_id="rmse/1",
        reference="Root mean square error over all pixels and channels of 8-bit RGB images divided by 255",
    ),
    Metric(
        name="ssim",
        title="structural similarity",
        direction="higher",
        bounds=(-1.0, 1.0),
        needs="image pairs",
        definition_id="ssim/1",
        reference=(
            "Wang et al. 2004, doi:10.1109/TIP.2003.819861: 11x11 Gaussian window with sigma 1.5, "
            "K1 = 0.01, K2 = 0.03, per channel"
        ),
    ),
)
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def rmse(base: np.ndarray, erased: np.ndarray) -> np.ndarray:
    """Root mean square pixel difference in [0, 1]: uint8 [B, H, W, 3] twice -> float64 [B]. Raises
    ValueError for anything else.
    """
    _check(base, erased)
    difference = base.astype(np.int32) - erased.astype(np.int32)
    return np.sqrt((difference**2).mean(axis=(1, 2, 3))) / 255


def ssim(base: np.ndarray, erased: np.ndarray) -> np.ndarray:
    """Mean structural similarity over the places where the window fits: uint8 [B, H, W, 3] twice ->
    float64 [B].

    Raises ValueError for other types or images smaller than the window.
    """
    _check(base, erased)
    if min(base.shape[1:3]) < WINDOW:
        raise ValueError(
            f"images of {base.shape[1]}x{base.shape[2]} pixels are smaller than the "
            f"{WINDOW}x{WINDOW} window of SSIM"
        )
    x, y = base.astype(np.float32) / 255, erased.astype(np.float32) / 255
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return similarity.mean(axis=(1, 2, 3), dtype=np.float64)


def _check(base: np.ndarray, erased: np.ndarray) -> None:
    if (
        base.dtype != np.uint8
        or erased.dtype != np.uint8
        or base.ndim != 4
        or base.shape[-1] != 3
        or base.shape != erased.shape
    ):
        raise ValueError(
            f"expected two uint8 arrays of one shape [B, H, W, 3], got {base.dtype} {base.shape} "
            f"and {erased.dtype} {erased.shape}"
        )


def _blur(images: np.ndarray) -> np.ndarray:
    """Gaussian mean of every window that fits: [B, H, W, C] -> [B, H - 10, W - 10, C]."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        size = images.shape[axis] - WINDOW + 1
        images = sum(w * np.take(images, range(i, i + size), axis) for i, w in enumerate(weights))  # type: ignore[assignment]
    return images
