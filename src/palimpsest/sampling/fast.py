"""The form in which a device evaluates a pipeline fastest: dtype, memory layout, compiled blocks. None of it is an approximation, and the
pipeline that is given stays as it is.

Attention needs nothing: diffusers' default processor calls PyTorch's fused attention, and no method here replaces it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from palimpsest.sampling.load import cast
from palimpsest.sampling.pipeline import Hook, Pipeline, overlay
from palimpsest.sampling.twins import twin

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.specs import Sampler

log = logging.getLogger(__name__)
# What a U-Net consists of again and again: a compiler sees each kind once, not the whole network.
REGIONS = ("BasicTransformerBlock", "ResnetBlock2D")


@dataclass(frozen=True)
class Form:
    """How UNet and decoder are evaluated. why: what kept blocks from being compiled although the settings ask for it."""

    dtype: str
    channels_last: bool
    compiled: bool
    why: str = ""


def form(pipeline: Pipeline, sampler: Sampler) -> Form:
    """The form for a sampler on the pipeline's device.

    Channels last on CUDA in half precision, where convolutions run on tensor cores and would turn the tensors themselves, and on a CPU in
    float32, whose convolutions do the same. Compiled only on CUDA, and not under hooks that enter the UNet at every
    step: a compiled block does not see what is hung into it later.
    """
    kind = torch.device(pipeline.device).type
    cuda = kind == "cuda"
    turned = (cuda and sampler.dtype != "float32") or (kind == "cpu" and sampler.dtype == "float32")
    why = ""
    if sampler.compile and not cuda:
        why = f"blocks are compiled on CUDA only, and this is {pipeline.device}"
    elif sampler.compile and entering(pipeline.hooks):
        why = f"{', '.join(entering(pipeline.hooks))} enters the UNet at every step"
    return Form(sampler.dtype, turned, sampler.compile and not why, why)


def entering(hooks: Sequence[Hook]) -> list[str]:
    """The hooks that do something inside of the UNet while it is evaluated."""
    return [type(hook).__name__ for hook in hooks if type(hook).around is not Hook.around]


def prepared(pipeline: Pipeline, sampler: Sampler) -> Pipeline:
    """The pipeline in the form for `sampler`; what does not change is shared with the given one."""
    wanted = form(pipeline, sampler)
    if wanted.why:
        log.warning("sampler.compile: not compiled, because %s", wanted.why)
    made = cast(pipeline, sampler.dtype)
    if wanted.channels_last:
        made = channels_last(made, pipeline)
    return compiled(made) if wanted.compiled else made


def channels_last(pipeline: Pipeline, given: Pipeline) -> Pipeline:
    """UNet and decoder with the weights of their convolutions in the order in which they are read. Those that are shared with `given` are
    copied first, since a layout is changed in place; all other weights stay shared.
    """
    parts: dict[str, Any] = {}
    for name in ("unet", "vae"):
        part = getattr(pipeline, name)
        if part is not getattr(given, name):
            parts[name] = torch.nn.Module.to(part, memory_format=torch.channels_last)
            continue
        turned: dict[int, Tensor] = {
            id(weight): torch.nn.Parameter(
                weight.detach().contiguous(memory_format=torch.channels_last), weight.requires_grad
            )
            for weight in part.parameters()
            if weight.dim() == 4
        }
        parts[name] = twin(part, turned)
    return replace(pipeline, **parts)


def compiled(pipeline: Pipeline, backend: str = "inductor") -> Pipeline:
    """The pipeline with a UNet whose repeated blocks are compiled, each kind once (`torch.compile`). Tensors are shared with the given one,
    modules are not.

    Raises ValueError for a UNet without such blocks.
    """
    unet = overlay(pipeline.unet, {})
    blocks = [module for module in unet.modules() if type(module).__name__ in REGIONS]
    if not blocks:
        raise ValueError(f"sampler.compile: {type(unet).__name__} has none of the blocks {list(REGIONS)}")
    for block in blocks:
        block.compile(backend=backend)
    return replace(pipeline, unet=unet)
