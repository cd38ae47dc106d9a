"""Real pictures of a suite's prompts: a folder of image files, or a Parquet table, found by the prompt's number."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")


class Real(BaseModel):
    """path: a folder (`<id>.jpg`, `<id with 12 digits>.jpg`, `COCO_val2014_<id with 12 digits>.jpg`, or .png) or a Parquet file with
    columns prompt_id and image. crop: "center" cuts the middle square, "squash" squeezes the whole picture to the model's size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    crop: Literal["center", "squash"] = "center"


class RealPictures:
    """Looks up pictures by prompt number, at resolution x resolution pixels (PIL bicubic, antialiased)."""

    def __init__(self, real: Real, resolution: int) -> None:
        self.real = real
        self.resolution = resolution
        self.place = Path(real.path)
        if not self.place.exists():
            raise FileNotFoundError(
                f"there are no real pictures at {real.path}. Put them there, or leave this suite out of `quality.real`."
            )
        self._table = self._read_table() if self.place.is_file() else None

    def _read_table(self) -> dict[int, bytes]:
        from palimpsest import store

        frame = store.read_parquet(self.place, ["prompt_id", "image"])
        return {
            int(row["prompt_id"]): row["image"]["bytes"]
            for row in frame.iter_rows(named=True)
            if row["image"]
        }

    def get(self, prompt_id: int) -> np.ndarray | None:
        """The picture of a prompt, uint8 [resolution, resolution, 3]; None when there is none."""
        import io

        from PIL import Image

        if self._table is not None:
            data = self._table.get(prompt_id)
            return None if data is None else self._fitted(Image.open(io.BytesIO(data)))
        for stem in (f"{prompt_id}", f"{prompt_id:012d}", f"COCO_val2014_{prompt_id:012d}"):
            for suffix in SUFFIXES:
                path = self.place / f"{stem}{suffix}"
                if path.is_file():
                    return self._fitted(Image.open(path))
        return None

    def _fitted(self, picture: object) -> np.ndarray:
        from PIL import Image

        assert isinstance(picture, Image.Image)
        picture = picture.convert("RGB")
        width, height = picture.size
        if self.real.crop == "center":
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            picture = picture.crop((left, top, left + side, top + side))
        size = (self.resolution, self.resolution)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(picture)
