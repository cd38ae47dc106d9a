"""The closed-form parts of MACE, for all layers from a few Gram matrices.

Both stages solve a ridge problem whose right factor is the same for every layer. They are written for the change of a layer, not for the
layer: with the Gram matrix G, V the sum of wanted value times vector, and W the layer to start from,

    [lamb W + V] [lamb I + G]^-1  =  W + [V - W G] [lamb I + G]^-1

For lamb 0 and vectors that do not span the space the right side, with the pseudo-inverse, is the limit of small lamb: directions that no
vector has stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.methods._masked_attention import Adapters


@dataclass(frozen=True)
class Moments:
    """Sums over the prompts of one keyword, float64 [D, D] on the CPU.

    kept: c c^T over the contexts c, the positions that are not the keyword's own; moved: (n - c) c^T, n being the vector at the position
    of c when the keyword is replaced; whole: e e^T over all positions.
    """

    kept: Tensor
    moved: Tensor
    whole: Tensor


def kept_positions(old: Sequence[int], new: Sequence[int], length: int) -> tuple[list[int], list[int]]:
    """Positions in two padded prompts that belong together: the tokens both begin with, those both end with, and the padding.

    old, new: token ids with start and end token, without padding; length: of a padded prompt. Where one prompt is longer, the padding of
    the other is cut to as many positions. The tokens in between, which differ, are left out.
    """
    shortest = min(len(old), len(new))
    head = next((i for i in range(shortest) if old[i] != new[i]), shortest)
    room = shortest - head
    tail = next((i for i in range(room) if old[-1 - i] != new[-1 - i]), room)
    padding = length - max(len(old), len(new))
    return tuple(  # type: ignore[return-value]
        [*range(head), *range(len(ids) - tail, len(ids) + padding)] for ids in (old, new)
    )


def moments(old: Tensor, new: Tensor, positions: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Moments:
    """old, new: embeddings [P, L, D] of the keyword's prompts and the same with the keyword replaced; positions: one pair per prompt."""
    old, new = old.double(), new.double()
    contexts = torch.cat([vectors[list(mine)] for vectors, (mine, _) in zip(old, positions, strict=True)])
    wanted = torch.cat([vectors[list(theirs)] for vectors, (_, theirs) in zip(new, positions, strict=True)])
    flat = old.flatten(0, 1)
    sums = (contexts.T @ contexts, (wanted - contexts).T @ contexts, flat.T @ flat)
    return Moments(*(matrix.cpu() for matrix in sums))


def inverse(gram: Tensor) -> Tensor:
    """(Pseudo-)inverse of a symmetric matrix without negative eigenvalues.

    The vectors come from a float32 network, so eigenvalues of the size of its rounding, squared, count as 0.
    """
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    least = values[-1] * len(values) * torch.finfo(torch.float32).eps ** 2
    values = torch.where(values > least, 1 / values, torch.zeros_like(values))
    return (vectors * values) @ vectors.T


def refinement(found: Sequence[Moments], prior: Tensor, lamb: float) -> Tensor:
    """Stage 1, as N with W1 = W0 + W0 N for every layer: contexts of keywords get the values they have in a prompt without them.

    prior: scale times the sum of e e^T over preserved texts; what they give stays, as far as it can.
    """
    size = len(prior)
    gram = lamb * torch.eye(size, dtype=prior.dtype) + prior + sum(m.kept for m in found)
    return torch.stack([m.moved for m in found]).sum(0) @ inverse(gram)


def fusion(
    weights: Mapping[str, Tensor],
    refined: Tensor,
    found: Sequence[Moments],
    adapters: Adapters,
    prior: Tensor,
    lamb: float,
) -> dict[str, Tensor]:
    """Stage 3: one set of layers that gives, for the prompts of every keyword, what the refined layers with its addition give.

    weights: W0, name -> [d_out, D]; refined: N of stage 1; prior: as in stage 1, and it pulls towards W0. Everything float64.
    """
    size = len(prior)
    gram = lamb * torch.eye(size, dtype=prior.dtype) + prior + sum(m.whole for m in found)
    divided = inverse(gram)
    shares = [m.whole @ divided for m in found]
    changes = [adapters.changes(index) for index in range(len(found))]
    # W1 + [sum D_i G_i + (W0 - W1) S] A^-1, with W1 = W0 + W0 N
    common = refined - refined @ prior @ divided
    fused = {}
    for name, weight in weights.items():
        added = torch.zeros_like(weight)
        for change, share in zip(changes, shares, strict=True):
            up, down = change[name]
            added += up @ (down @ share)
        fused[name] = weight + weight @ common + added
    return fused
