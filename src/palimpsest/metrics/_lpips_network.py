"""The network of LPIPS 0.1: AlexNet or VGG16 up to its last convolution, and one weight per channel of five layers.

Weights come from one safetensors file: the backbone under torchvision's names (`features.0.weight`, ...) and the channels' weights under
the names of the lpips package (`lin0.model.1.weight`, ...).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from palimpsest.metrics.measuring import MissingWeights

# (width, kernel, stride, padding) of a convolution with its ReLU, "pool", and "tap" behind the layers that are compared
Layer = tuple[int, int, int, int] | str
ALEX: tuple[Layer, ...] = (
    (64, 11, 4, 2), "tap", "pool", (192, 5, 1, 2), "tap", "pool", (384, 3, 1, 1), "tap", (256, 3, 1, 1), "tap", (256, 3, 1, 1), "tap",
)  # fmt: skip
VGG: tuple[Layer, ...] = (
    (64, 3, 1, 1), (64, 3, 1, 1), "tap", "pool", (128, 3, 1, 1), (128, 3, 1, 1), "tap", "pool",
    (256, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "tap", "pool", (512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), "tap", "pool",
    (512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), "tap",
)  # fmt: skip
LAYOUTS = {"alex": (ALEX, (3, 2)), "vgg": (VGG, (2, 2))}
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""ImageNet's channel means and deviations on the scale [-1, 1]."""


class LpipsNetwork(nn.Module):
    """Pictures in [-1, 1] -> distances. The numbering of `features` is torchvision's."""

    def __init__(self, network: str = "alex") -> None:
        super().__init__()
        layout, (window, stride) = LAYOUTS[network]
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        widths, width = [], 3
        for layer in layout:
            if layer == "tap":
                self.taps.append(len(layers) - 1)
                widths.append(width)
            elif layer == "pool":
                layers.append(nn.MaxPool2d(window, stride))
            elif not isinstance(layer, str):
                layers += [nn.Conv2d(width, layer[0], *layer[1:]), nn.ReLU()]
                width = layer[0]
        self.features = nn.Sequential(*layers)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def _taps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        hidden, found = (pixels - self.shift) / self.scale, []
        for place, layer in enumerate(self.features):
            hidden = layer(hidden)
            if place in self.taps:
                found.append(hidden / (hidden.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Distances [n] of two batches [n, 3, h, w]."""
        total = torch.zeros(len(a), device=a.device)
        for one, other, weight in zip(self._taps(a), self._taps(b), self.weights, strict=True):
            total = total + torch.einsum("nchw,c->nhw", (one - other) ** 2, weight).mean(dim=(1, 2))
        return total

    @torch.no_grad()
    def distance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The same for float32 arrays: float64 [n]."""
        device = self.weights[0].device
        found = self(torch.from_numpy(a).to(device), torch.from_numpy(b).to(device))
        return found.double().cpu().numpy()


def state_of(tensors: dict[str, torch.Tensor], network: str) -> dict[str, torch.Tensor]:
    """The released names -> those of `LpipsNetwork`, classifier left out. Raises ValueError when one is missing or misshapen."""
    wanted = LpipsNetwork(network).state_dict()
    found, problems = {}, []
    for name, mine in wanted.items():
        theirs = f"lin{name.split('.')[1]}.model.1.weight" if name.startswith("weights.") else name
        given = tensors.get(theirs)
        if given is None or given.numel() != mine.numel():
            problems.append(f"{theirs} ({'missing' if given is None else tuple(given.shape)})")
        else:
            found[name] = given.float().reshape(mine.shape)
    if problems:
        raise ValueError(
            f"these are no weights of LPIPS with {network}: {', '.join(problems)}; expected torchvision's {network} and lpips 0.1.4"
        )
    return found


def load_network(path: Path, network: str, device: str = "cpu") -> LpipsNetwork:
    """The network of a safetensors file. Raises MissingWeights naming the command that makes it."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingWeights(
            f"there is no {path}. Download AlexNet's (or VGG16's) weights from torchvision and the linear weights of lpips 0.1.4, then run "
            f"`python -m palimpsest.metrics.convert lpips BACKBONE.pth LINEAR.pth --out {path}`."
        )
    model = LpipsNetwork(network)
    model.load_state_dict(state_of(load_file(path), network))
    return model.eval().requires_grad_(False).to(device)
