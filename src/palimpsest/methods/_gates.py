"""Turning side branches up by what the prompt is about: gates of SPM, and the hook that applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.methods._adapters import Branch, attached, merged, prepared
from palimpsest.sampling.embeddings import encode_cached, states_of, token_count
from palimpsest.sampling.pipeline import Conditioning, Hook, Pipeline, Step

Gate = Literal["official_sq", "paper_linear", "none"]
Matching = Literal["clipcos_tokenuni", "clipcos", "tokenuni"]


def split_words(text: str) -> tuple[str, ...]:
    """The keywords of a concept text, which gates compare one by one (as in the official code)."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def require_tokens(pipeline: Pipeline, words: Sequence[str], method: str) -> None:
    """Raises ValueError without keywords, and for one without tokens: it would be the empty prompt."""
    if not words:
        raise ValueError(
            f"{method}: there is no keyword to erase; list at least one in the theme's keyword set"
        )
    for word in words:
        if token_count(pipeline, word) == 0:
            raise ValueError(
                f"{method}: the keyword {word!r} has no tokens, so it says nothing to the text encoder; remove it "
                "from the theme's keyword set or spell it out"
            )


def token_sets(tokenizer: Any, texts: Sequence[str]) -> list[set[int]]:
    """The tokens of every text, cut as the text encoder cuts it, without special tokens."""
    special = set(tokenizer.all_special_ids)
    ids = tokenizer(list(texts), truncation=True, max_length=tokenizer.model_max_length)["input_ids"]
    return [set(row) - special for row in ids]


def likeness(
    prompts: tuple[Sequence[set[int]], Tensor], words: tuple[Sequence[set[int]], Tensor], matching: Matching
) -> Tensor:
    """How much every prompt [B] is about every word [W]: float32 [B, W] on the CPU. Both are given as their token
    sets and embeddings [., 77, D].

    "clipcos": cosine of whole embeddings, all 77 positions as one vector; "tokenuni": share of the word's tokens
    that the prompt has; "clipcos_tokenuni": the larger of the two.
    """
    found = []
    if "clipcos" in matching:
        left, right = (F.normalize(e.detach().float().cpu().flatten(1), dim=1) for _, e in (prompts, words))
        found.append(left @ right.T)
    if "tokenuni" in matching:
        found.append(torch.tensor([[len(p & w) / len(w) for w in words[0]] for p in prompts[0]]))
    return torch.stack(found).amax(0)


def mixing_of(gates: Tensor, gate: Gate) -> Tensor:
    """G [B, S, S] of gates [B, S].

    "paper_linear": every concept's branch times its gate. "official_sq": the official code multiplies every tensor,
    A as well as B, by the gate and then sums the tensors of several concepts, so the branch is (sum g B) (sum g A):
    the square of the gate for one concept, and one concept's B with another's A for several.
    """
    if gate == "official_sq":
        return gates[:, :, None] * gates[:, None, :]
    return torch.diag_embed(gates)


@dataclass
class GatedBranches(Hook):
    """Adds branches to the UNet, in every guidance branch alike, as far as the prompt is about their keywords.

    groups: how many keywords each concept has, the largest likeness of a concept's keywords being its gate. words:
    token sets and embeddings of all keywords in order. mixing and ready belong to one batch.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    alpha: float
    groups: tuple[int, ...]
    words: tuple[Sequence[set[int]], Tensor] = field(repr=False)
    tokenizer: Any = field(repr=False)
    gate: Gate
    matching: Matching
    strength: float
    mixing: Tensor | None = field(default=None, repr=False)
    ready: Mapping[str, Branch] | None = field(default=None, repr=False)

    def gates(self, prompts: Sequence[str], embeds: Tensor) -> Tensor:
        """The gate of every concept for every prompt: float32 [B, S]. embeds: [B, 77, D]."""
        scores = likeness((token_sets(self.tokenizer, prompts), embeds), self.words, self.matching)
        return torch.stack([scores_of.amax(1) for scores_of in scores.split(self.groups, dim=1)], dim=1)

    def begin(self, conditioning: Conditioning) -> GatedBranches:
        # Whole embeddings are compared by their token states: a pooled row is not one of them.
        embeds = conditioning.branches["cond"][:, : self.words[1].shape[1]]
        mixing = self.strength * mixing_of(self.gates(conditioning.prompts, embeds), self.gate)
        return replace(self, mixing=mixing.to(embeds.device), ready=None)

    def around(self, unet: Any, step: Step) -> AbstractContextManager[Any]:
        if self.mixing is None:
            raise RuntimeError(
                "the gates of this batch are not known yet; call begin() and use what it returns"
            )
        if self.ready is None:
            like = torch.empty(0, dtype=unet.dtype, device=unet.device)
            self.ready = prepared(self.tensors, self.alpha, like)
        return attached(unet, self.ready, self.mixing.repeat(len(step.branches), 1, 1))


def with_gate(
    pipeline: Pipeline, tensors: Mapping[str, Tensor], alpha: float, words: Sequence[Sequence[str]], gate: Gate,
    matching: Matching, strength: float,
) -> Pipeline:  # fmt: skip
    """The pipeline with branches: gated by the prompt through a hook, or, with gate "none", in its weights.
    Strength 0 is the pipeline itself.

    words: keywords of each concept.
    """
    if strength == 0.0:
        return pipeline
    if gate == "none":
        return merged(pipeline, tensors, alpha, strength)
    listed = [word for group in words for word in group]
    require_tokens(pipeline, listed, "gate")
    embeds = states_of(pipeline, encode_cached(pipeline, listed))
    known = token_sets(pipeline.tokenizer, listed), embeds
    groups = tuple(len(group) for group in words)
    return pipeline.with_hook(
        GatedBranches(tensors, alpha, groups, known, pipeline.tokenizer, gate, matching, strength)
    )
