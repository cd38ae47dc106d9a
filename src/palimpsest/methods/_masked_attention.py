"""Low-rank additions to cross-attention, trained to look away from masked regions, for several keywords side by side.

Every sample of a batch has an addition of its own to each key and value layer, so the keywords of a batch are trained as if each were
alone: nothing of one sample enters the gradient of another. The UNet stops after its last cross-attention, because nothing behind it is
read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from palimpsest.methods._training import Dtype, arithmetic


class Finished(Exception):
    """The last cross-attention of a forward pass has been recorded."""


@dataclass(frozen=True)
class Adapters:
    """Additions up @ down to the layers `names`, for K keywords. down: [K, r, D] and up: [K, d_out, r] per layer, float32."""

    names: tuple[str, ...]
    down: tuple[Tensor, ...]
    up: tuple[Tensor, ...]

    @classmethod
    def drawn(
        cls, unet: Any, names: Sequence[str], rank: int, generators: Sequence[torch.Generator]
    ) -> Adapters:
        """Untrained ones: down ~ N(0, 1 / rank^2), up 0. generators: one per keyword."""
        own = dict(unet.named_parameters())
        down = [
            torch.stack([torch.randn(rank, own[name].shape[1], generator=g) / rank for g in generators])
            for name in names
        ]
        up = [torch.zeros(len(generators), own[name].shape[0], rank) for name in names]
        device = unet.device
        return cls(tuple(names), *(tuple(x.to(device).requires_grad_() for x in part) for part in (down, up)))

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.down, *self.up]

    def changes(self, keyword: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer -> (up [d_out, r], down [r, D]) of one keyword, float64 on the CPU."""
        return {
            name: (up[keyword].detach().double().cpu(), down[keyword].detach().double().cpu())
            for name, down, up in zip(self.names, self.down, self.up, strict=True)
        }


@dataclass
class Watch:
    """What the attention processors of one UNet share: the additions in use, what to look at, and what was seen.

    keywords: which addition each sample uses, int64 [B]; masks: bool [B, H, W]; tokens: bool [B, L], the text positions that count;
    norms: per layer so far, [B].
    """

    adapters: Adapters
    layers: int
    keywords: Tensor | None = None
    masks: Tensor | None = None
    tokens: Tensor | None = None
    norms: list[Tensor] = field(default_factory=list)

    def addition(self, name: str, texts: Tensor) -> Tensor:
        """What the additions give for texts [B, L, D]: [B, L, d_out]."""
        index = self.adapters.names.index(name)
        down, up = (part[index][self.keywords] for part in (self.adapters.down, self.adapters.up))
        return (texts @ down.transpose(1, 2)) @ up.transpose(1, 2)

    def record(self, probabilities: Tensor, heads: int) -> None:
        """Note the Frobenius norm of probabilities [B * heads, Q, L] inside of mask and tokens. Raises Finished after the last layer."""
        assert self.masks is not None and self.tokens is not None
        count, side = len(self.masks), math.isqrt(probabilities.shape[1])
        inside = torch.nn.functional.interpolate(
            self.masks[:, None].float(), size=(side, side), mode="nearest"
        )
        maps = probabilities.float().reshape(count, heads, side * side, -1)
        inside = (inside > 0.5).reshape(count, 1, -1, 1)
        seen = maps * (inside & self.tokens[:, None, None, :])
        self.norms.append(torch.linalg.vector_norm(seen.flatten(1), dim=1))
        if len(self.norms) == self.layers:
            raise Finished


class WatchedAttention:
    """Attention processor that adds what the watch holds, and shows it the softmax probabilities."""

    def __init__(self, name: str, watch: Watch) -> None:
        self.name, self.watch = name, watch

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **unused: Any
    ) -> Tensor:
        """hidden_states: [B, Q, d]; encoder_hidden_states: [B, L, D]."""
        texts = encoder_hidden_states
        key = attn.to_k(texts) + self.watch.addition(f"{self.name}.to_k.weight", texts)
        query, key = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), key))
        probabilities = attn.get_attention_scores(query, key)
        self.watch.record(probabilities, attn.heads)
        value = attn.to_v(texts) + self.watch.addition(f"{self.name}.to_v.weight", texts)
        value = attn.head_to_batch_dim(value).to(probabilities.dtype)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(probabilities @ value)))


def watched(unet: Any, adapters: Adapters) -> Watch:
    """Give every cross-attention of this UNet (in place) a processor with the additions."""
    found = [(name, module) for name, module in unet.named_modules() if name.endswith(".attn2")]
    watch = Watch(adapters, len(found))
    for name, module in found:
        module.set_processor(WatchedAttention(name, watch))
    return watch


@dataclass(frozen=True)
class Batch:
    """Samples: noised latents [B, C, h, w], timesteps [B], texts [B, L, D], and what `Watch` says of the other three."""

    latents: Tensor
    timesteps: Tensor
    texts: Tensor
    keywords: Tensor
    masks: Tensor
    tokens: Tensor


def attention_norms(unet: Any, watch: Watch, batch: Batch, dtype: Dtype) -> Tensor:
    """Sum over layers of the norm of attention inside of mask and tokens, per sample [B]."""
    watch.keywords, watch.masks, watch.tokens, watch.norms = batch.keywords, batch.masks, batch.tokens, []
    try:
        with arithmetic(dtype, batch.latents.device):
            unet(batch.latents, batch.timesteps, batch.texts)
    except Finished:
        return torch.stack(watch.norms).sum(0)
    raise RuntimeError(f"only {len(watch.norms)} of {watch.layers} cross-attentions were evaluated")


def clip_each(parameters: Sequence[Tensor], largest: float) -> None:
    """Bound the norm of each keyword's gradient, all its additions together, to `largest` (in place)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    share = (largest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(share[:, None, None])
