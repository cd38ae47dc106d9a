"""Step `reference`: the unerased images at the size at which images are compared, to be shared with the scores.

They are a small part of the base's generations at the resolutions of real models, and all that a new method is compared with: whoever
has the scores and the prompts can add one without the base's images.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from palimpsest import store
from palimpsest.job import Job
from palimpsest.metrics.drift import LARGEST, comparable

IMAGE = pl.Struct({"bytes": pl.Binary, "path": pl.String})


def reduced(image: dict[str, Any] | None) -> dict[str, Any] | None:
    """A stored image at the size of comparison, as PNG; one that is small enough stays what it is, byte for byte."""
    if image is None:
        return None
    pixels = store.decode_png(image["bytes"])
    if max(pixels.shape[:2]) <= LARGEST:
        return image
    return {**image, "bytes": store.encode_png(comparable(pixels[None])[0])}


def run(job: Job) -> None:
    base = store.read_parquet(job.one("generate").path, ["image_id", "image"])
    images = pl.Series("image", [reduced(image) for image in base["image"].to_list()], dtype=IMAGE)
    job.write_parquet(
        pl.DataFrame([base["image_id"], images]), {"images": len(base)}, image_columns=["image"]
    )
