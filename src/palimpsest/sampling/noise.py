"""Seeds of images and the initial noise they stand for.

The seed of an image depends on the suite, the prompt and the repetition, never on the method, so the images
of two methods are pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def image_seed(base_seed: int, suite: str, prompt_id: int, repetition: int) -> int:
    """A seed in [0, 2**32) for suites that bring none of their own; different arguments give unrelated
    seeds.
    """
    text = json.dumps([int(base_seed), suite, int(prompt_id), int(repetition)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def initial_noise(seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 of `shape` ([C, h, w] of one image), drawn on the CPU from a generator
    of its own.

    The values are those of `torch.manual_seed(seed); torch.randn(1, *shape)`, which is what the published
    benchmark code draws.
    """
    import torch

    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed} is outside [0, 2**64); give a non-negative whole number")
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
