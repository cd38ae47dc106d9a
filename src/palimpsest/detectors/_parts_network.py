"""A small convolutional network that finds where parts are: one map per part, whose peaks are the parts (Zhou et al. 2019, Objects as
Points, arXiv:1904.07850).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.detectors.contract import MissingWeights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
STRIDE = 4


@dataclass(frozen=True)
class Shape:
    """labels: parts in the order of the maps; target, other: the groups that a GRD compares; side: of the images in pixels."""

    labels: tuple[str, ...]
    target: tuple[str, ...]
    other: tuple[str, ...]
    side: int
    width: int = 40
    dilations: tuple[int, ...] = (1, 2, 4)


class PartsNetwork(nn.Module):
    """RGB in [-1, 1], [B, 3, S, S] -> logits [B, labels, S / 4, S / 4]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, width = shape, shape.width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=d, dilation=d, bias=False), nn.BatchNorm2d(width)
            )
            for d in shape.dilations
        )
        self.head = nn.Conv2d(width, len(shape.labels), 1)
        nn.init.constant_(self.head.bias, -3.0)  # parts are rare: start from "nothing here"

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.stem(pixels)
        for block in self.blocks:
            states = functional.relu(states + block(states))
        return self.head(states)


def peaks(logits: Tensor, least: float) -> list[list[Tensor]]:
    """Per image and label the heights of the peaks above `least`, largest first: logits [B, labels, h, w].

    A peak is higher than its eight neighbours; of equal ones the first counts.
    """
    heat = logits.sigmoid()
    later = torch.arange(heat[0, 0].numel(), device=heat.device).view(heat.shape[2:])
    ranked = heat.double() - later * 1e-12
    top = ranked == functional.max_pool2d(ranked, 3, stride=1, padding=1)
    found = torch.where(top & (heat > least), heat, torch.zeros_like(heat)).flatten(2)
    ordered = found.sort(dim=2, descending=True).values
    counts = (ordered > 0).sum(dim=2)
    return [
        [ordered[image, label, : int(counts[image, label])] for label in range(ordered.shape[1])]
        for image in range(len(ordered))
    ]


def save(network: PartsNetwork, folder: Path) -> None:
    """Write config.json and the weights in float16."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(asdict(network.shape), indent=2) + "\n", encoding="utf-8")
    tensors = {
        name: value.detach().half().contiguous()
        for name, value in network.state_dict().items()
        if value.is_floating_point()  # counters of batches serve training only
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load(folder: Path) -> PartsNetwork:
    """A network that `save` wrote, in float32. Raises MissingWeights, or ValueError naming tensors that do not fit."""
    from safetensors.torch import load_file

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise MissingWeights(
                f"{folder / name} is missing; `python -m palimpsest.world.train parts` makes a folder of a parts detector"
            )
    given = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    network = PartsNetwork(Shape(**fields))
    network.load_state_dict(_checked(network, load_file(folder / WEIGHTS), folder), strict=False)
    return network.eval().requires_grad_(False)


def _checked(network: PartsNetwork, tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    wanted = {name: value.shape for name, value in network.state_dict().items() if value.is_floating_point()}
    found = {name: value.shape for name, value in tensors.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {CONFIG}: {len(odd)} tensors differ, first {odd[:3]}"
        )
    return {name: value.float() for name, value in tensors.items()}
