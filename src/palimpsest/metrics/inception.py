"""Features of FID's Inception for sets of pictures, under two ways to resize that give FIDs points apart.

`pytorch` resizes as pytorch-fid 0.3.0 does: bilinear inside the network, no antialiasing. `clean` as clean-fid does: PIL's bicubic filter
on every channel in float, antialiased. Both are stored per picture, so every FID and KID comes from one pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from palimpsest.metrics.measuring import in_one_size

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.metrics.measuring import Pictures, Values

SIDE = 299
SETS = {"pytorch": ("pytorch", ""), "clean": ("clean", "clean")}
FILES = ("path",)


class Settings(BaseModel):
    """weights: a safetensors file from `python -m palimpsest.metrics.convert inception`. resize: which feature sets are stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    revision: str | None = None
    resize: tuple[Literal["pytorch", "clean"], ...] = ("pytorch", "clean")
    batch: int = 32


def gives(settings: Settings) -> tuple[str, ...]:
    """Nothing per picture."""
    return ()


def feature_sets(settings: Settings) -> dict[str, tuple[str, str]]:
    """One set per way to resize; KID is reported for the antialiased one alone."""
    return {name: SETS[name] for name in settings.resize}


def needs(settings: Settings) -> frozenset[str]:
    """No other pictures per picture; sets are compared later."""
    return frozenset()


def load(settings: Settings, device: str = "cpu") -> Features:
    """Inception with its released weights. Raises MissingWeights."""
    from palimpsest.metrics._inception_network import load_network

    return Features(load_network(Path(settings.path), device), settings)


class Features:
    """Inception's features of pictures."""

    def __init__(self, network: Any, settings: Settings) -> None:
        self.network = network
        self.settings = settings

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "inception",
            "weights": self.settings.path,
            "resize": list(self.settings.resize),
        }

    def measure(self, pictures: Pictures) -> Values:
        return {}

    def features(self, pictures: Pictures) -> Values:
        """float32 [n, 2048] per way to resize."""
        import numpy as np
        import torch

        device = next(self.network.parameters()).device
        found: Values = {}
        for name in self.settings.resize:
            parts = []
            for start in range(0, len(pictures.images), self.settings.batch):
                images = list(pictures.images[start : start + self.settings.batch])
                with torch.inference_mode():
                    parts.append(self.network(PREPARED[name](images).to(device)).float().cpu().numpy())
            found[name] = np.concatenate(parts) if parts else np.zeros((0, 2048), np.float32)
        return found


def prepared_pytorch(images: list[np.ndarray]) -> Any:
    """Pictures of one size uint8 [h, w, 3] -> float32 [n, 3, 299, 299] in [-1, 1], bilinear without antialiasing."""
    import torch
    from torch.nn import functional

    values = torch.from_numpy(in_one_size(images)).permute(0, 3, 1, 2).float() / 255
    return functional.interpolate(values, (SIDE, SIDE), mode="bilinear", align_corners=False) * 2 - 1


def prepared_clean(images: list[np.ndarray]) -> Any:
    """Pictures uint8 [h, w, 3] of any sizes -> float32 [n, 3, 299, 299], (x - 128) / 128 after PIL's bicubic filter in float."""
    import numpy as np
    import torch
    from PIL import Image

    def resized(image: np.ndarray) -> np.ndarray:
        channels = [Image.fromarray(image[..., k].astype(np.float32)) for k in range(3)]
        return np.stack(
            [np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in channels]
        )

    return (torch.from_numpy(np.stack([resized(image) for image in images])) - 128) / 128


PREPARED = {"pytorch": prepared_pytorch, "clean": prepared_clean}
