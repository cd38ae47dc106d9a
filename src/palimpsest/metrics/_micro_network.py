"""The micro world's own picture network: a small CNN whose activations stand in for Inception's and AlexNet's.

It was trained to say what a render shows (palimpsest.world.features). What is measured with it is called `..._micro`, so that nobody takes
it for a published measure.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

WIDTHS = (24, 48, 64, 96)
FEATURES = 32
WEIGHTS = "model.safetensors"


class Network(nn.Module):
    """RGB in [0, 1], [n, 3, h, w] -> features [n, 32]; h and w are divisible by 8."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        steps = (2, 2, 1, 2)
        self.layers = nn.ModuleList(
            nn.Conv2d(given, width, 3, stride=step, padding=1)
            for given, width, step in zip(inputs, WIDTHS, steps, strict=True)
        )
        self.embed = nn.Linear(2 * WIDTHS[-1], FEATURES)

    def activations(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """The output of every layer, [n, width, h', w']."""
        found, hidden = [], (pixels - 0.5) * 4
        for layer in self.layers:
            hidden = functional.relu(layer(hidden))
            found.append(hidden)
        return found

    def features(self, last: torch.Tensor) -> torch.Tensor:
        """Features [n, 32] of the last layer's output: its mean and its maximum over the picture, embedded."""
        return self.embed(torch.cat([last.mean(dim=(2, 3)), last.amax(dim=(2, 3))], dim=1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.features(self.activations(pixels)[-1])


def load(folder: str | Path) -> Network:
    """The network of a folder, in float32 and eval mode. Raises FileNotFoundError naming the command that makes it."""
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}. Run `git checkout -- {folder}`, or `snakemake world` to train it again."
        )
    network = Network()
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return network.eval().requires_grad_(False)


def pixels_of(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in [0, 1]. Raises ValueError for anything else."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"the picture network takes uint8 images [n, h, w, 3], got {images.dtype} {images.shape}"
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    """Perceptual distance of two sets of activations, [n]: of unit vectors over channels, squared, mean over places, sum over layers.

    The uncalibrated form of LPIPS (Zhang et al. 2018, arXiv:1801.03924, equation 1 with all weights 1).
    """
    total = torch.zeros(len(a[0]))
    for one, other in zip(a, b, strict=True):
        gap = _unit(one) - _unit(other)
        total += (gap**2).sum(dim=1).mean(dim=(1, 2))
    return total


def _unit(hidden: torch.Tensor) -> torch.Tensor:
    return hidden / (hidden.norm(dim=1, keepdim=True) + 1e-10)
