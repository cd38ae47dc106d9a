"""The micro world's cheap measures: features for FID and KID and a perceptual distance, from one pass of its own picture network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from palimpsest.metrics.contract import Metric
from palimpsest.metrics.measuring import in_one_size

if TYPE_CHECKING:
    from palimpsest.metrics.measuring import Pictures, Values

METRICS = (
    Metric(
        name="lpips_micro",
        title="micro world's perceptual distance to the base model's picture of the same seed",
        direction="lower",
        bounds=(0.0, 16.0),  # four layers, and two unit vectors are at most 2 apart
        needs="image pairs",
        definition_id="lpips_micro/1",
        reference=(
            "Uncalibrated LPIPS (Zhang et al. 2018, arXiv:1801.03924) on four layers of the micro world's own picture network; not "
            "comparable with any published LPIPS"
        ),
    ),
)
FILES = ("path",)


class Settings(BaseModel):
    """path: the folder of the picture network (palimpsest.world.features)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    revision: str | None = None
    batch: int = 64


def gives(settings: Settings) -> tuple[str, ...]:
    """The metrics measured per picture."""
    return ("lpips_micro",)


def feature_sets(settings: Settings) -> dict[str, tuple[str, str]]:
    """One set, for fid_micro and kid_micro."""
    return {"micro": ("micro", "micro")}


def needs(settings: Settings) -> frozenset[str]:
    """The base model's pictures."""
    return frozenset({"base"})


def load(settings: Settings, device: str = "cpu") -> Micro:
    """The picture network. Raises FileNotFoundError."""
    from palimpsest.metrics._micro_network import load as load_network

    return Micro(load_network(settings.path).to(device), settings)


class Micro:
    """The picture network."""

    def __init__(self, network: Any, settings: Settings) -> None:
        self.network = network
        self.settings = settings

    def identity(self) -> dict[str, Any]:
        return {"kind": "micro", "weights": self.settings.path}

    def measure(self, pictures: Pictures) -> Values:
        """Distance of every picture to the base's: float64 [n]; NaN where there is none."""
        import numpy as np

        from palimpsest.metrics._micro_network import distance

        found = np.full(len(pictures.images), np.nan)
        known = [i for i, other in enumerate(pictures.base) if other is not None]
        for start in range(0, len(known), self.settings.batch):
            index = known[start : start + self.settings.batch]
            ours = self._activations([pictures.images[i] for i in index])
            theirs = self._activations([pictures.base[i] for i in index])
            found[index] = distance(ours, theirs).double().cpu().numpy()
        return {"lpips_micro": found}

    def features(self, pictures: Pictures) -> Values:
        """float32 [n, 32]."""
        import numpy as np
        import torch

        from palimpsest.metrics._micro_network import FEATURES

        parts = [np.zeros((0, FEATURES), np.float32)]
        for start in range(0, len(pictures.images), self.settings.batch):
            hidden = self._activations(list(pictures.images[start : start + self.settings.batch]))
            with torch.inference_mode():
                parts.append(self.network.features(hidden[-1]).cpu().numpy())
        return {"micro": np.concatenate(parts)}

    def _activations(self, images: list[Any]) -> Any:
        import torch

        from palimpsest.metrics._micro_network import pixels_of

        device = next(self.network.parameters()).device
        with torch.inference_mode():
            return self.network.activations(pixels_of(in_one_size(images)).to(device))
