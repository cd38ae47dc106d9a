"""How far an erased image lies from the base image of the same seed, pixel by pixel and in structure.

Both are measured on images of at most 256 pixels a side, so that the base's images can be kept, and shared, at that size.
"""

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
        definition_id="rmse/2",
        reference=(
            "Root mean square error over all pixels and channels of 8-bit RGB images divided by 255; larger images are "
            "averaged by area to 256 pixels on their longer side first (rmse/1 took them as they were)"
        ),
    ),
    Metric(
        name="ssim",
        title="structural similarity",
        direction="higher",
        bounds=(-1.0, 1.0),
        needs="image pairs",
        definition_id="ssim/2",
        reference=(
            "Wang et al. 2004, doi:10.1109/TIP.2003.819861: 11x11 Gaussian window with sigma 1.5, "
            "K1 = 0.01, K2 = 0.03, per channel; larger images are averaged by area to 256 pixels on their longer side first "
            "(ssim/1 took them as they were)"
        ),
    ),
)
LARGEST = 256
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def comparable(images: np.ndarray) -> np.ndarray:
    """Images at the size at which they are compared: uint8 [B, H, W, 3] -> [B, h, w, 3] with h, w <= LARGEST.

    Smaller ones are returned as they are; of larger ones each pixel becomes the mean over its area. Comparing reduces by itself, and what
    is reduced already stays as it is.
    """
    height, width = images.shape[1:3]
    longer = max(height, width)
    if longer <= LARGEST:
        return images
    rows, columns = (_shares(side, max(1, round(side * LARGEST / longer))) for side in (height, width))
    # at once in both directions, and rounded once: image libraries round after each, upwards
    means = [np.einsum("hH,HWc,wW->hwc", rows, image, columns, optimize=True) for image in images]
    return np.rint(means).astype(np.uint8)


def _shares(old: int, new: int) -> np.ndarray:
    """How much each of `old` pixels in a line has in the mean that makes each of `new` ones: [new, old], rows sum to 1."""
    edges = np.arange(new + 1) * (old / new)
    starts = np.arange(old)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.clip(overlap, 0, None) * (new / old)


def rmse(base: np.ndarray, erased: np.ndarray) -> np.ndarray:
    """Root mean square pixel difference in [0, 1]: uint8 [B, H, W, 3] twice -> float64 [B]. Raises
    ValueError for anything else.
    """
    base, erased = _checked(base, erased)
    difference = base.astype(np.int32) - erased.astype(np.int32)
    return np.sqrt((difference**2).mean(axis=(1, 2, 3))) / 255


def ssim(base: np.ndarray, erased: np.ndarray) -> np.ndarray:
    """Mean structural similarity over the places where the window fits: uint8 [B, H, W, 3] twice ->
    float64 [B].

    Raises ValueError for other types or images smaller than the window.
    """
    base, erased = _checked(base, erased)
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


def _checked(base: np.ndarray, erased: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both at the size at which they are compared."""
    pictures = all(a.dtype == np.uint8 and a.ndim == 4 and a.shape[-1] == 3 for a in (base, erased))
    reduced = (comparable(base), comparable(erased)) if pictures else (base, erased)
    if not pictures or reduced[0].shape != reduced[1].shape:
        raise ValueError(
            f"expected two uint8 arrays of one shape [B, H, W, 3], got {base.dtype} {base.shape} "
            f"and {erased.dtype} {erased.shape}"
        )
    return reduced


def _blur(images: np.ndarray) -> np.ndarray:
    """Gaussian mean of every window that fits: [B, H, W, C] -> [B, H - 10, W - 10, C]."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        size = images.shape[axis] - WINDOW + 1
        images = sum(w * np.take(images, range(i, i + size), axis) for i, w in enumerate(weights))  # type: ignore[assignment]
    return images
