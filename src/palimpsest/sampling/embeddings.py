"""Prompts to text embeddings, in the form the checkpoint was trained with.

Every prompt is 77 tokens: start token, text, end token, and the tokenizer's padding up to the end (truncated when
longer), without an attention mask; the embedding is the last hidden state after the final layer norm. Checkpoints of
Stable Diffusion v2 in diffusers layout have one layer less for that than OpenCLIP. Stable Diffusion XL has embeddings
[78, D] with a pooled one in the last row, see `sampling.sdxl`.
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
    if pipeline.text_encoder_2 is not None:
        from palimpsest.sampling import sdxl

        return sdxl.encode(pipeline, prompts, batch)
    ids = token_ids(pipeline, prompts).to(pipeline.text_encoder.device)
    return torch.cat([pipeline.text_encoder(part).last_hidden_state for part in ids.split(batch)])


def encode_with_unconditional(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Embeddings [1 + N, 77, D] of what guidance takes as unconditional, then of the prompts; nothing is cached.

    The unconditional is the empty prompt, or zeros for a checkpoint that says so (`Pipeline.zero_empty`).
    """
    found = encode(pipeline, ["", *prompts])
    if pipeline.zero_empty:
        found[0] = 0
    return found


def unconditional_cached(pipeline: Pipeline) -> Tensor:
    """The unconditional embedding [1, 77, D] for sampling, see `encode_with_unconditional`."""
    found = encode_cached(pipeline, [""])
    return torch.zeros_like(found) if pipeline.zero_empty else found


def states_of(pipeline: Pipeline, texts: Tensor) -> Tensor:
    """The token states [N, 77, D] in embeddings [N, L, D]: all there is, but for the pooled row of Stable Diffusion XL."""
    return texts if pipeline.text_encoder_2 is None else texts[:, :-1]


def shortened(texts: Tensor, length: int, pooled: bool) -> Tensor:
    """Embeddings [N, L, D] with the first `length` token states only. pooled: whether they end with a pooled row, which stays."""
    return torch.cat([texts[:, :-1][:, :length], texts[:, -1:]], dim=1) if pooled else texts[:, :length]


def encode_cached(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Embeddings [N, 77, D] for sampling: kept per text encoder and prompt, forgotten when the encoder's
    weights change.

    Prompts go through the encoder one by one: in a larger batch the last bits of an embedding depend on its
    neighbours.
    """
    known = _known(pipeline.text_encoder, pipeline.text_encoder_2)
    rows: dict[str, Tensor] = {}
    for prompt in dict.fromkeys(prompts):
        if prompt not in known:
            known[prompt] = encode(pipeline, [prompt])[0]
        known.move_to_end(prompt)
        rows[prompt] = known[prompt]
    while len(known) > CACHED_PROMPTS:
        known.popitem(last=False)
    return torch.stack([rows[prompt] for prompt in prompts])


def _known(encoder: torch.nn.Module, second: torch.nn.Module | None) -> OrderedDict[str, Tensor]:
    # torch counts the in-place changes of every tensor, so a training step on the encoder changes this sum. A
    # move to another device or dtype replaces the tensors without counting, so both are part of it.
    parts: list[object] = []
    for one in (encoder, second):
        tensors = [] if one is None else list(one.parameters())
        first = [(t.device, t.dtype, t.data_ptr()) for t in tensors[:1]]
        parts += [sum(t._version for t in tensors), *first]
    version = hash(tuple(parts))
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
