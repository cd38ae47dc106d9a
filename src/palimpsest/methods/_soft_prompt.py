"""Learned vectors in the place of tokens, for a CLIP text encoder.

The vectors come in through a forward hook on the token embedding while ordinary ids are passed, so that the
encoder's own forward runs: positions, causal mask and final norm stay what they are. (Calling the encoder's
layers with embeddings of one's own loses the causal mask in transformers 5, without an error.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def prefix_layout(ids: Tensor, kept: int, count: int) -> Tensor:
    """Ids [77] with `count` places after the start token, then the text's first `kept` ids, then the rest.

    To make room, the ids right after those `kept` are dropped; they stand in the new places, where their
    embeddings are never used. `kept` is cut when text and places do not fit together.
    """
    kept = min(kept, len(ids) - 1 - count)
    start, words, dropped, rest = ids.split([1, kept, count, len(ids) - 1 - kept - count])
    return torch.cat([start, dropped, words, rest])


@contextmanager
def prefixed(encoder: Any, vectors: Tensor) -> Iterator[None]:
    """While this is open, positions 1..k of every text have the token embeddings `vectors` [k, D]."""

    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
        own = vectors.to(output.dtype).expand(len(output), -1, -1)
        return torch.cat([output[:, :1], own, output[:, 1 + len(vectors) :]], dim=1)

    handle = encoder.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def encode_prefixed(encoder: Any, ids: Tensor, vectors: Tensor) -> Tensor:
    """Text embeddings [N, 77, D] of ids [N, 77] (see `prefix_layout`) with `vectors` [k, D] as the prefix.

    Gradients reach `vectors` and the encoder's parameters.
    """
    with prefixed(encoder, vectors):
        return encoder(ids).last_hidden_state
