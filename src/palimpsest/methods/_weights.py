"""Laying edited weights over a pipeline at a given strength."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.sampling.pipeline import Component, Pipeline


def with_edited(
    pipeline: Pipeline, component: Component, tensors: Mapping[str, Tensor], strength: float
) -> Pipeline:
    """The pipeline with W0 + strength * (W - W0) in place of W0 for every tensor W.

    Strength 0 is the pipeline itself and strength 1 takes W as it is, both without rounding. The mixture is
    computed in float32 and stored in the component's own type. Raises ValueError for a tensor that the
    component does not have or that has another shape.
    """
    if strength == 0.0:
        return pipeline
    if strength == 1.0:
        return pipeline.with_weights(component, tensors)
    module = getattr(pipeline, component)
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    mixed = {}
    for name, edited in tensors.items():
        if name not in own or own[name].shape != edited.shape:
            mixed[name] = edited  # refused below, with the names that exist
            continue
        base = own[name].detach().float()
        mixed[name] = base + strength * (edited.to(base.device).float() - base)
    return pipeline.with_weights(component, mixed)
