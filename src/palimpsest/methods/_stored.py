"""Trained weights as artifact tensors: as they are, or as a change in half precision at half the size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.sampling.pipeline import Pipeline

Stored = Literal["float32", "float16"]
CHANGE = "change."


def stored(student: Any, base: Any, dtype: Stored) -> dict[str, Tensor]:
    """CPU tensors of the trained parameters of `student` that differ from those of `base`.

    "float32": name -> weights. "float16": "change." + name -> weights less those of `base`, rounded once; the change of
    a weight is far smaller than the weight, so this keeps more of it than weights in half precision would. Raises
    ValueError for a change outside of the range of half precision (65504).
    """
    import torch

    from palimpsest.methods._training import trained

    own, kept = dict(base.named_parameters()), {}
    for name, parameter in trained(student).items():
        change = parameter.detach().float() - own[name].detach().float()
        if not change.any():
            continue
        if dtype == "float32":
            kept[name] = parameter.detach().to("cpu", copy=True)
            continue
        half = change.to("cpu", torch.float16)
        if not half.isfinite().all():
            raise ValueError(f"{name} changed by up to {float(change.abs().max()):.3g}; set stored: float32")
        kept[CHANGE + name] = half
    return kept


def with_stored(pipeline: Pipeline, tensors: Mapping[str, Tensor], strength: float) -> Pipeline:
    """The pipeline with the trained weights of its UNet at `strength`; 0 is the pipeline itself.

    Raises ValueError for a tensor that the UNet does not have or that has another shape.
    """
    from palimpsest.methods._weights import with_edited

    if strength == 0.0 or not any(key.startswith(CHANGE) for key in tensors):
        return with_edited(pipeline, "unet", tensors, strength)
    own, moved = dict(pipeline.unet.named_parameters()), {}
    for key, change in tensors.items():
        name = key.removeprefix(CHANGE)
        moved[name] = change  # refused below, with the names that exist, when it does not fit
        if name in own and own[name].shape == change.shape:
            base = own[name].detach().float()
            moved[name] = base + strength * change.to(base.device).float()
    return pipeline.with_weights("unet", moved)
