"""Prompts to text embeddings, in the form Stable Diffusion v1 was trained with.

Every prompt is 77 tokens: start token, text, and end tokens up to the end (truncated when longer), without an
attention mask; the embedding is the last hidden state after the final layer norm.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.sampling.pipeline import Pipeline

log = logging.getLogger(__name__)
# Embeddings of Stable Diffusion v1 are 236 kB each; suites with few prompts and many seeds fit in this whole.
CACHED_PROMPTS = 256
_cache: WeakKeyDictionary[torch.nn.Module, tuple[int, OrderedDict[str, Tensor]]] = WeakKeyDictionary()


def token_ids(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Token ids int64 [N, 77], padded with the tokenizer's pad token (the end token in Stable Diffusion
    v1).
    """
    tokenizer = pipeline.tokenizer
    batch = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return batch.input_ids


def token_count(pipeline: Pipeline, prompt: str) -> int:
    """Tokens of the text itself, start and end token not counted; more than 75 means that `encode` cuts the
    text.
    """
    return len(pipeline.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)


@torch.no_grad()
def encode(pipeline: Pipeline, prompts: Sequence[str], batch: int = 32) -> Tensor:
    """Embeddings [N, 77, D] on the pipeline's device in the text encoder's dtype; nothing is cached, no
    gradient is kept.
    """
    if not prompts:
        raise ValueError("there are no prompts to encode; give at least one (it may be the empty string)")
    ids = token_ids(pipeline, prompts).to(pipeline.text_encoder.device)
    return torch.cat([pipeline.text_encoder(part).last_hidden_state for part in ids.split(batch)])


def encode_cached(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Embeddings [N, 77, D] for sampling: kept per text encoder and prompt, forgotten when the encoder's
    weights change.

    Prompts go through the encoder one by one: in a larger batch the last bits of an embedding depend on its
    neighbours.
    """
    known = _known(pipeline.text_encoder)
    rows: dict[str, Tensor] = {}
    for prompt in dict.fromkeys(prompts):
        if prompt not in known:
            known[prompt] = encode(pipeline, [prompt])[0]
        known.move_to_end(prompt)
        rows[prompt] = known[prompt]
    while len(known) > CACHED_PROMPTS:
        known.popitem(last=False)
    return torch.stack([rows[prompt] for prompt in prompts])


def _known(encoder: torch.nn.Module) -> OrderedDict[str, Tensor]:
    # torch counts the in-place changes of every tensor, so a training step on the encoder changes this sum. A
    # move to another device or dtype replaces the tensors without counting, so both are part of it.
    tensors = list(encoder.parameters())
    version = hash(
        (sum(t._version for t in tensors), tensors[0].device, tensors[0].dtype, tensors[0].data_ptr())
    )
    if encoder not in _cache or _cache[encoder][0] != version:
        _cache[encoder] = (version, OrderedDict())
    return _cache[encoder][1]


def warn_when_cut(pipeline: Pipeline, text: str, what: str) -> None:
    """Log a warning when a concept text is too long for the text encoder, saying how much is lost."""
    room = pipeline.tokenizer.model_max_length - 2
    count = token_count(pipeline, text)
    if count > room:
        log.warning(
            "%s: the concept text has %d tokens, the last %d are cut: %r", what, count, count - room, text
        )
