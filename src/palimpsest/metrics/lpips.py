"""LPIPS in three forms that share a name in the literature and answer different questions.

`lpips_drift` is the distance to the base model's picture of the same prompt and seed: what erasing changed. `lpips_real` is the distance to
an unrelated photograph of the same caption. `lpips_paper` is that distance as the benchmark's released code computes it: pictures squeezed
to 128 x 128 and given in [0, 1], where the network was trained on [-1, 1]; it hardly tells methods apart and is here for comparison only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from palimpsest.metrics.contract import Metric
from palimpsest.metrics.measuring import resized

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.metrics.measuring import Pictures, Values

SOURCE = "Zhang et al. 2018, arXiv:1801.03924, version 0.1 with AlexNet"


def _metric(name: str, title: str, needs: Any, how: str) -> Metric:
    return Metric(
        name=name,
        title=title,
        direction="lower",
        bounds=(0.0, None),
        needs=needs,
        definition_id=f"{name}/1",
        reference=f"{SOURCE}; {how}",
    )


METRICS = (
    _metric(
        "lpips_drift",
        "LPIPS to the base model's picture of the same seed",
        "image pairs",
        "both at 64 x 64 (PIL bilinear), in [-1, 1]",
    ),
    _metric(
        "lpips_drift_256",
        "LPIPS to the base model's picture of the same seed, at 256 x 256",
        "image pairs",
        "both averaged by area to at most 256 pixels a side, in [-1, 1]",
    ),
    _metric(
        "lpips_real",
        "LPIPS to the real picture of the caption",
        "image and real picture",
        "both at 256 x 256 (PIL bilinear), in [-1, 1]",
    ),
    _metric(
        "lpips_paper",
        "LPIPS to the real picture as the benchmark's code computes it",
        "image and real picture",
        "both squeezed to 128 x 128 (PIL bilinear), in [0, 1] instead of [-1, 1], as released with the benchmark in 2025",
    ),
)
Form = Literal["lpips_drift", "lpips_drift_256", "lpips_real", "lpips_paper"]


@dataclass(frozen=True)
class Way:
    """How one form prepares its pictures. size: None keeps that of the comparison (256 at most)."""

    other: Literal["base", "real"]
    size: int | None
    signed: bool


WAYS: dict[str, Way] = {
    "lpips_drift": Way("base", 64, True),
    "lpips_drift_256": Way("base", None, True),
    "lpips_real": Way("real", 256, True),
    "lpips_paper": Way("real", 128, False),
}


class Settings(BaseModel):
    """weights: a safetensors file from `python -m palimpsest.metrics.convert lpips`. forms: which distances are measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    revision: str | None = None
    network: Literal["alex", "vgg"] = "alex"
    forms: tuple[Form, ...] = ("lpips_drift",)
    batch: int = 32


FILES = ("path",)


def gives(settings: Settings) -> tuple[str, ...]:
    """The metrics measured per picture."""
    return tuple(settings.forms)


def feature_sets(settings: Settings) -> dict[str, tuple[str, str]]:
    """No features of sets."""
    return {}


def needs(settings: Settings) -> frozenset[str]:
    """Which other pictures are read: those of the base model, real ones, or both."""
    return frozenset(WAYS[form].other for form in settings.forms)


def load(settings: Settings, device: str = "cpu") -> Lpips:
    """The network with its weights. Raises FileNotFoundError with the command that makes them."""
    from palimpsest.metrics._lpips_network import load_network

    return Lpips(load_network(Path(settings.path), settings.network, device), settings)


class Lpips:
    """The forms of one network."""

    def __init__(self, network: Any, settings: Settings) -> None:
        self.network = network
        self.settings = settings

    def identity(self) -> dict[str, Any]:
        return {"kind": "lpips", "network": self.settings.network, "weights": self.settings.path}

    def measure(self, pictures: Pictures) -> Values:
        """Distances of every picture to its other: float64 [n] per form."""
        return {form: self.distances(form, pictures) for form in self.settings.forms}

    def features(self, pictures: Pictures) -> Values:
        return {}

    def distances(self, form: str, pictures: Pictures) -> np.ndarray:
        """One form: float64 [n]; NaN where the other picture is missing."""
        import numpy as np

        way = WAYS[form]
        others = pictures.base if way.other == "base" else pictures.real
        found = np.full(len(pictures.images), np.nan)
        known = [i for i, other in enumerate(others) if other is not None]
        for start in range(0, len(known), self.settings.batch):
            index = known[start : start + self.settings.batch]
            ours = [pictures.images[i] for i in index]
            theirs = [others[i] for i in index]
            a, b = (self._prepared(group, way) for group in (ours, theirs))
            found[index] = self.network.distance(a, b)
        return found

    def _prepared(self, images: list[Any], way: Way) -> np.ndarray:
        """float32 [n, 3, h, w] in the range that the form gives."""
        import numpy as np

        from palimpsest.metrics.drift import comparable

        if way.size is None:
            stack = np.stack([comparable(image[None])[0] for image in images])
        else:
            stack = np.stack([resized(image, way.size, "bilinear") for image in images])
        values = stack.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        return values * 2 - 1 if way.signed else values
