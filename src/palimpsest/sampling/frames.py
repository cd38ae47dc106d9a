"""Images of another size brought to the side that an experiment judges."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """A uint8 image [H, W, 3] as [side, side, 3]: Pillow's Lanczos filter on 8-bit channels, which smooths before it shrinks."""
    import numpy as np
    from PIL import Image

    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))
