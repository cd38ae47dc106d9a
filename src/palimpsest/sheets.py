"""Contact sheets: small copies of a cell's images in one JPEG, so that a page can show all of them without a file for each."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence

import numpy as np

SIDE = 64  # pixels of a small copy
ACROSS = 16  # small copies in a line
QUALITY = 60
PAPER = (128, 128, 128)


def chosen(image_ids: Sequence[str], count: int) -> list[int]:
    """Rows of the images that stand on a sheet, in their order: all, or `count` in the order of a hash, the same for all methods."""
    if len(image_ids) <= count:
        return list(range(len(image_ids)))
    order = sorted(range(len(image_ids)), key=lambda at: hashlib.sha256(image_ids[at].encode()).hexdigest())
    return sorted(order[:count])


def small(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> [SIDE, SIDE, 3], each pixel the mean over its area; an image of that size stays as it is."""
    from PIL import Image

    if image.shape[:2] == (SIDE, SIDE):
        return image
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))


def sheet(pictures: Mapping[int, np.ndarray], places: int) -> bytes | None:
    """A JPEG of `places` places in lines of `ACROSS`; pictures: place -> `small` image. None without any picture."""
    from PIL import Image

    if not pictures:
        return None
    whole = Image.new("RGB", (SIDE * ACROSS, SIDE * -(-places // ACROSS)), PAPER)
    for place, picture in pictures.items():
        whole.paste(Image.fromarray(picture), (SIDE * (place % ACROSS), SIDE * (place // ACROSS)))
    buffer = io.BytesIO()
    whole.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
