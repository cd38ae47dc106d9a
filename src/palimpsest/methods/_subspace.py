"""Subspaces of the text encoder's pooled space, and which tokens of a prompt lie towards one of them.

All in float64 on the CPU. A subspace is kept as an orthonormal basis Q [D, r]; its projection is Q Q^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.sampling.pipeline import Pipeline

# Directions this much weaker than the strongest are rounding errors of the float32 text encoder.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Tokens:
    """A prompt's tokens. count: without start and end token; pooled: pooled embedding of the prompt with each
    token masked in turn, [count, D].
    """

    count: int
    pooled: Tensor


def basis(vectors: Tensor) -> Tensor:
    """Orthonormal basis [D, r] of the span of vectors [n, D]; r is 0 for no vectors."""
    if not len(vectors):
        return vectors.T
    sizes, rows = torch.linalg.svd(vectors, full_matrices=False)[1:]
    return rows[sizes > TOLERANCE * sizes[0]].T


def onto(vectors: Tensor, space: Tensor) -> Tensor:
    """Projection of each row of vectors [n, D] onto a space [D, r]."""
    return (vectors @ space) @ space.T


def token_rows(pipeline: Pipeline, text: str) -> Tensor:
    """Token ids [1, L] of a text from start to end token, cut to what the text encoder takes."""
    limit = pipeline.tokenizer.model_max_length
    return pipeline.tokenizer(text, truncation=True, max_length=limit, return_tensors="pt").input_ids


@torch.no_grad()
def pooled(pipeline: Pipeline, rows: Tensor) -> Tensor:
    """Hidden states of the end token, [n, D], of token ids [n, L] that all end in it.

    The text encoder is causal, so the padding after the end token, left out here, would change nothing. Of Stable
    Diffusion XL it is the second encoder's, projected, as in the official code.
    """
    if pipeline.text_encoder_2 is not None:
        second = pipeline.text_encoder_2
        return second(rows.to(second.device)).text_embeds.double().cpu()
    encoder = pipeline.text_encoder
    return encoder(rows.to(encoder.device)).last_hidden_state[:, -1].double().cpu()


def concept_space(pipeline: Pipeline, keywords: Sequence[str]) -> Tensor:
    """Basis of the pooled embeddings of the keywords, one direction per keyword."""
    return basis(torch.cat([pooled(pipeline, token_rows(pipeline, word)) for word in keywords]))


def compared(pipeline: Pipeline) -> tuple[slice, slice]:
    """Rows and columns of an embedding that lie in the pooled space: all of it, or, of Stable Diffusion XL, the states of
    the second encoder.

    Raises ValueError for a second encoder whose states and pooled embedding differ in width.
    """
    if pipeline.text_encoder_2 is None:
        return slice(None), slice(None)
    config = pipeline.text_encoder_2.config
    if config.hidden_size != config.projection_dim:
        raise ValueError(
            f"safree: the second text encoder has states {config.hidden_size} wide and a pooled embedding of {config.projection_dim}, so "
            "states cannot be projected onto the span of pooled embeddings"
        )
    return slice(0, -1), slice(-int(config.hidden_size), None)


def masked_tokens(pipeline: Pipeline, prompt: str, mask_id: int) -> Tokens:
    """The prompt with each of its tokens replaced by `mask_id` in turn, all in one call of the encoder."""
    ids = token_rows(pipeline, prompt)
    count = ids.shape[1] - 2
    if count == 0:
        return Tokens(0, torch.zeros(0, pooled(pipeline, ids).shape[1], dtype=torch.float64))
    rows = ids.repeat(count, 1)
    rows[range(count), range(1, count + 1)] = mask_id
    return Tokens(count, pooled(pipeline, rows))


def triggers(tokens: Tokens, concept: Tensor, alpha: float, lone: bool) -> Tensor:
    """Which tokens trigger the concept: bool [count].

    A token does when the prompt without it lies further from the concept space than (1 + alpha) times the
    mean over the other tokens. lone: the answer for the only token of a prompt, which has no others.
    """
    distance = (tokens.pooled - onto(tokens.pooled, concept)).norm(dim=1)
    if tokens.count < 2:
        return torch.full((tokens.count,), lone)
    others = (distance.sum() - distance) / (tokens.count - 1)
    return distance >= (1 + alpha) * others
