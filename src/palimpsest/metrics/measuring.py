"""What a measure of pictures is: a metric module that also defines `Settings`, `gives`, `feature_sets`, `needs`, `FILES` and `load`.

The step `quality` loads it once per job. Values are per picture and are averaged later; features are stored per picture and become measures
of sets (FID, KID) later. Importing a measure loads neither torch nor numpy: plans do.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import BaseModel

from palimpsest.declarations import declares, plugins

if TYPE_CHECKING:
    import numpy as np

    Values = dict[str, np.ndarray]


class MissingWeights(FileNotFoundError):
    """Weights that are not on this machine; the message says what belongs where and which command makes it."""


@dataclass(frozen=True)
class Pictures:
    """Pictures uint8 [h, w, 3] with their prompts. base: those of the unerased model, at the size of comparison; real: photographs or
    drawings of the prompts. Both are empty when nothing needs them, and hold None where there is none."""

    images: Sequence[np.ndarray]
    prompts: Sequence[str]
    base: Sequence[np.ndarray | None] = field(default=())
    real: Sequence[np.ndarray | None] = field(default=())


class Loaded(Protocol):
    """A measure with its weights."""

    def measure(self, pictures: Pictures) -> Values:
        """Per metric that `gives` names, float [n]; NaN where something it needs is missing."""
        ...

    def features(self, pictures: Pictures) -> Values:
        """Per set of features, float32 [n, d]."""
        ...

    def identity(self) -> dict[str, Any]:
        """What measured: kind, weights, number format; stored with the values."""
        ...


class Measure(Protocol):
    """The module-level names of a measure. FILES: settings that name weights; "revision" beside "path" may pin a hub id."""

    Settings: type[BaseModel]
    FILES: tuple[str, ...]

    def gives(self, settings: Any) -> tuple[str, ...]:
        """Metrics measured per picture."""
        ...

    def feature_sets(self, settings: Any) -> dict[str, tuple[str, str]]:
        """Set of features -> the endings of its FID and of its KID, e.g. "clean": ("clean", "clean"); "" where there is none."""
        ...

    def needs(self, settings: Any) -> frozenset[str]:
        """Which of "base" and "real" pictures it reads."""
        ...

    def load(self, settings: Any, device: str) -> Loaded:
        """Load the weights. Raises MissingWeights."""
        ...


def names() -> list[str]:
    """The measures that exist: files of this package that define a function `feature_sets`. Imports none of them."""
    return plugins(Path(__file__).parent, "feature_sets")


def find(kind: str) -> Measure:
    """The module of a measure. Raises ValueError with the names that exist."""
    if not declares(Path(__file__).with_name(f"{kind}.py"), "feature_sets"):
        raise ValueError(f"quality: kind {kind!r} does not exist; allowed: {names()}")
    return cast(Measure, importlib.import_module(f"palimpsest.metrics.{kind}"))


def resized(image: np.ndarray, side: int, how: str) -> np.ndarray:
    """A picture uint8 [h, w, 3] squeezed to side x side by one of PIL's antialiased filters ("bilinear", "bicubic")."""
    import numpy as np
    from PIL import Image

    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    return np.asarray(Image.fromarray(image).resize((side, side), filters[how]))


def in_one_size(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures as one array [n, h, w, 3]. Raises ValueError naming the sizes when they differ."""
    import numpy as np

    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ValueError(f"pictures of different sizes cannot be measured together: {sorted(shapes)}")
    return np.stack(images)
