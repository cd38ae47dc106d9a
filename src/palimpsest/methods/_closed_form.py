"""Closed-form edits of linear layers that all read the same vectors.

A layer W [d_out, D] shall give for each concept c what it gives for a guide g, give for each preserved p what
it gives now, and change little. In the ridge sense that is

    W [lamb I + s_p sum p p^T + s_e sum g c^T] [lamb I + s_p sum p p^T + s_e sum c c^T]^-1  =  W M

W stands on the left of every term, so M [D, D] is one matrix for all layers, and several edits in a row are
the product of their matrices. Everything here is float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def kept_moments(preserved: Tensor, lamb: float, preserve_scale: float) -> Tensor:
    """lamb I + s_p sum p p^T, [D, D]. preserved: [m, D] in float64, m may be 0."""
    ridge = lamb * torch.eye(preserved.shape[1], dtype=torch.float64)
    return ridge + preserve_scale * preserved.T @ preserved


def factor(kept: Tensor, concepts: Tensor, erase_scale: float) -> Tensor:
    """Cholesky factor of kept + s_e sum c c^T, the matrix that every edit divides by. concepts: [n, D]."""
    return torch.linalg.cholesky(kept + erase_scale * concepts.T @ concepts)


def divide(numerator: Tensor, gram: Tensor) -> Tensor:
    """numerator [k, D] times the inverse of the symmetric matrix whose Cholesky factor is `gram`."""
    return torch.cholesky_solve(numerator.T, gram).T


def edit_matrix(concepts: Tensor, guides: Tensor, kept: Tensor, erase_scale: float) -> Tensor:
    """M [D, D] that sends each concept to its guide. concepts, guides: [n, D]; kept: of `kept_moments`."""
    gram = factor(kept, concepts, erase_scale)
    return divide(kept + erase_scale * guides.T @ concepts, gram)


def layer_moments(weights: Mapping[str, Tensor]) -> Tensor:
    """sum W^T W over all layers, [D, D]. weights: name -> [d_out, D]."""
    stacked = torch.cat([weight.double() for weight in weights.values()])
    return stacked.T @ stacked


def edited(weights: Mapping[str, Tensor], matrix: Tensor) -> dict[str, Tensor]:
    """W M in float64 for every layer. weights: name -> [d_out, D]."""
    return {name: weight.double() @ matrix for name, weight in weights.items()}


def cross_attention_weights(unet: torch.nn.Module) -> dict[str, Tensor]:
    """Key and value layers of the cross-attentions, name -> [d_out, D] on the CPU, as they are stored.

    Raises ValueError when the UNet has none.
    """
    from palimpsest.methods._cross_attention import weight_names

    own = dict(unet.named_parameters())
    return {name: own[name].detach().cpu() for name in weight_names(unet, ("to_k", "to_v"))}


def relative_change(edited: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Size of each layer's change over the size of the layer (Frobenius norms)."""
    return {
        name: float((edited[name] - old.double()).norm() / old.double().norm())
        for name, old in weights.items()
    }
