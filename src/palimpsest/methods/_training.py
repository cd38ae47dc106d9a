"""What gradient-based methods share: seeded draws, a trainable copy of a component, and the tensors it leaves
behind.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from palimpsest.sampling.twins import twin

Dtype = Literal["float32", "bfloat16"]


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for one purpose, so that a new kind of draw does not shift the others."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(seeds: Iterable[int], shape: Sequence[int]) -> Tensor:
    """Standard normal float32 [N, *shape] on the CPU, one generator per seed: a sample does not depend on its
    neighbours.
    """
    return torch.stack(
        [torch.randn(*shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    )


def arithmetic(dtype: Dtype, device: Any) -> AbstractContextManager[Any]:
    """Where UNets are evaluated: matrix products in `dtype`; weights and optimiser stay in float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == "bfloat16")


def predict(unet: Any, latents: Tensor, timesteps: Tensor, texts: Tensor, dtype: Dtype) -> Tensor:
    """The UNet's prediction in float32: latents [N, C, h, w], timesteps [N], texts [N, L, D]."""
    with arithmetic(dtype, latents.device):
        return unet(latents, timesteps, texts).sample.float()


def in_float32(module: Any) -> Any:
    """The module itself when it is in float32, else a float32 copy: half precision loses small updates."""
    return (
        module
        if all(p.dtype == torch.float32 for p in module.parameters())
        else copy.deepcopy(module).float()
    )


def trainable_copy(module: Any, names: Sequence[str]) -> Any:
    """A float32 copy in which only `names` are trained; the other tensors are shared with `module` and get no
    gradients.
    """
    module = in_float32(module)
    wanted = set(names)
    own = dict(module.named_parameters())
    missing = sorted(wanted - set(own))
    if not wanted or missing:
        raise ValueError(
            f"nothing to train in {type(module).__name__}"
            if not wanted
            else f"no parameters named {missing[:5]}"
        )
    return twin(
        module,
        {
            id(p): torch.nn.Parameter(p.detach().clone() if name in wanted else p.detach(), name in wanted)
            for name, p in own.items()
        },
    )


def trained(student: Any) -> dict[str, Tensor]:
    """Name -> parameter, for those that are trained, in the module's order."""
    return {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}


def snapshot(student: Any) -> dict[str, Tensor]:
    """Detached CPU copies of the trained parameters."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained(student).items()}


def checked(loss: Tensor, update: int) -> float:
    """The loss as a number. Raises FloatingPointError when it is not finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value} at update {update}; lower learning_rate in the method's settings, run again"
        )
    return value
