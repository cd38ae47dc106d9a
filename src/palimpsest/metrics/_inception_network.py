"""Inception-v3 as FID uses it: the TensorFlow network of 2015-12-05 in PyTorch, up to its last pooling (2048 features).

It differs from torchvision's network of that name in three places: average pools do not count the padding, the last mixed block pools by
maximum, and the classifier has 1008 classes. Parameter names are those of the released weights (pt_inception-2015-12-05).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from palimpsest.metrics.measuring import MissingWeights

Shape = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution, batch normalisation in eval mode, ReLU."""

    def __init__(self, given: int, width: int, kernel: Shape, stride: int = 1, padding: Shape = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _average(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """Mixed blocks at 35 x 35."""

    def __init__(self, given: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(given, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(given, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(given, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Conv(64, 96, 3, padding=1), Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(given, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], dim=1)


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, given: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(given, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(given, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Conv(64, 96, 3, padding=1), Conv(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """Mixed blocks at 17 x 17 with convolutions of 1 x 7 and 7 x 1."""

    def __init__(self, given: int, inner: int) -> None:
        super().__init__()
        across: Shape
        across, down = (1, 7), (7, 1)
        self.branch1x1 = Conv(given, 192, 1)
        self.branch7x7_1 = Conv(given, inner, 1)
        self.branch7x7_2 = Conv(inner, inner, across, padding=(0, 3))
        self.branch7x7_3 = Conv(inner, 192, down, padding=(3, 0))
        self.branch7x7dbl_1 = Conv(given, inner, 1)
        self.branch7x7dbl_2 = Conv(inner, inner, down, padding=(3, 0))
        self.branch7x7dbl_3 = Conv(inner, inner, across, padding=(0, 3))
        self.branch7x7dbl_4 = Conv(inner, inner, down, padding=(3, 0))
        self.branch7x7dbl_5 = Conv(inner, 192, across, padding=(0, 3))
        self.branch_pool = Conv(given, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], dim=1)


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self, given: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(given, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(given, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, functional.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """Mixed blocks at 8 x 8. The last one pools by maximum."""

    def __init__(self, given: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = Conv(given, 320, 1)
        self.branch3x3_1 = Conv(given, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(given, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(given, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.last else _average(x)
        parts = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(parts, dim=1)


class Inception(nn.Module):
    """Pictures [n, 3, 299, 299] in [-1, 1] -> features [n, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3, self.Conv2d_2b_3x3 = Conv(32, 32, 3), Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, last=False), BlockE(2048, last=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(functional.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))


def load_network(path: Path, device: str = "cpu") -> Inception:
    """The network of a safetensors file. Raises MissingWeights naming the command that makes it, ValueError for other weights."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingWeights(
            f"there is no {path}. Download pt_inception-2015-12-05-6726825d.pth (released with pytorch-fid), then run "
            f"`python -m palimpsest.metrics.convert inception PTH --out {path}`."
        )
    network = Inception()
    network.load_state_dict(state_of(load_file(path)))
    return network.eval().requires_grad_(False).to(device)


def state_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The released tensors without the classifier. Raises ValueError when they are not those of this network."""
    wanted = Inception().state_dict()
    kept = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
    counters = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    kept = {**counters, **kept}
    wrong = sorted(name for name in wanted if name not in kept or kept[name].shape != wanted[name].shape)
    strange = sorted(set(kept) - set(wanted))
    if wrong or strange:
        raise ValueError(
            f"these are no weights of FID's Inception: {len(wrong)} tensors missing or misshapen (first: {wrong[:1]}), "
            f"{len(strange)} unknown (first: {strange[:1]}); expected those released with pytorch-fid"
        )
    return kept
