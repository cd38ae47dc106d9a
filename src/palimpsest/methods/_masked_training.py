"""Samples of stage 2 of MACE: an image of a keyword with its mask, a prompt that names the keyword, a timestep and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from palimpsest.methods._masked_attention import (
    Adapters,
    Batch,
    attention_norms,
    clip_each,
    watched,
)
from palimpsest.methods._training import checked, normal
from palimpsest.methods.contract import ImageSet

if TYPE_CHECKING:
    from palimpsest.methods.mace import Settings

Pixels = Literal["imagenet", "symmetric"]
EndTokens = Literal["all", "first", "none"]
# Of ImageNet; the official code normalises with these before an autoencoder that expects [-1, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Item:
    """One sample. image: index into the keyword's own images; prompt: index of the template; seed: of its noise."""

    image: int
    prompt: int
    timestep: int
    seed: int


def focus(timesteps: int) -> Tensor:
    """Probability of each timestep under importance sampling, float64 [T]: s(0.05 (t - 200)) - s(0.05 (t - 400)), s the sigmoid.

    The bounds are meant for 1000 timesteps.
    """
    t = torch.arange(timesteps, dtype=torch.float64)
    weights = torch.sigmoid(0.05 * (t - 200)) - torch.sigmoid(0.05 * (t - 400))
    return weights / weights.sum()


def draw_items(
    images: int,
    prompts: int,
    iterations: int,
    importance: Tensor | None,
    timesteps: int,
    generator: torch.Generator,
) -> list[Item]:
    """The samples of one keyword, in order: images in a new order every epoch, everything else independent."""

    def whole(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    items: list[Item] = []
    order: list[int] = []
    for _ in range(iterations):
        order = order or torch.randperm(images, generator=generator).tolist()
        if importance is None:
            timestep = whole(timesteps)
        else:
            timestep = int(torch.multinomial(importance, 1, generator=generator))
        items.append(Item(order.pop(), whole(prompts), timestep, whole(2**62)))
    return items


def token_mask(prompt: Sequence[int], words: Sequence[int], end: int, ends: EndTokens) -> Tensor:
    """Text positions whose attention is suppressed, bool [L]: every place of the keyword's tokens, and end tokens.

    prompt: token ids with padding, which is the end token in Stable Diffusion v1 and counts as one in the others, where it is another
    token; end: the id of the end token.
    """
    marks = torch.zeros(len(prompt), dtype=torch.bool)
    for start in range(len(prompt) - len(words) + 1):
        if list(prompt[start : start + len(words)]) == list(words):
            marks[start : start + len(words)] = True
    places = list(range(prompt.index(end), len(prompt))) if end in prompt else []
    marks[{"all": places, "first": places[:1], "none": []}[ends]] = True
    return marks


def images_of(sets: Sequence[ImageSet], keyword: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [n, H, W, 3] and masks bool [n, H, W] of one keyword. Raises ValueError when there are none."""
    pictures, masks = [], []
    for group in sets:
        if group.masks is None or len(group.keywords) != len(group.images):
            raise ValueError(
                f"the masked images of theme {group.theme!r} come without masks or keywords; step `masks` gives both"
            )
        chosen = [index for index, word in enumerate(group.keywords) if word == keyword]
        pictures.append(group.images[chosen])
        masks.append(group.masks[chosen])
    if not sum(map(len, pictures)):
        known = sorted({word for group in sets for word in group.keywords})
        raise ValueError(
            f"mace: no masked image shows the keyword {keyword!r}; the images show {known}. Give the theme more training images "
            "(training_images.sizes), at least one per keyword"
        )
    return np.concatenate(pictures), np.concatenate(masks)


def pixels_of(images: np.ndarray, form: Pixels) -> Tensor:
    """What the autoencoder is given, float32 [n, 3, H, W]."""
    scaled = torch.from_numpy(images.astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    if form == "symmetric":
        return 2.0 * scaled - 1.0
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (scaled - mean) / deviation


@dataclass(frozen=True)
class Examples:
    """What one keyword is trained on. images, masks: see `images_of`; texts: [P, L, D]; tokens: bool [P, L]; items: the samples."""

    images: np.ndarray
    masks: np.ndarray
    texts: Tensor
    tokens: Tensor
    items: Sequence[Item]


class Samples:
    """Turns items into batches. Every image that is drawn is encoded once."""

    def __init__(self, pipeline: Any, examples: Sequence[Examples], settings: Settings) -> None:
        self.pipeline, self.examples, self.settings = pipeline, examples, settings
        self._posteriors = self._encoded()

    def _encoded(self) -> Mapping[tuple[int, int], tuple[Tensor, Tensor]]:
        """(keyword, image) -> mean and deviation of its latent before scaling, [C, h, w]."""
        vae = self.pipeline.vae
        found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        keys = sorted({(index, item.image) for index, own in enumerate(self.examples) for item in own.items})
        for start in range(0, len(keys), self.settings.forward_batch):
            part = keys[start : start + self.settings.forward_batch]
            images = np.stack([self.examples[keyword].images[image] for keyword, image in part])
            with torch.no_grad():
                pixels = pixels_of(images, self.settings.pixels).to(vae.device, vae.dtype)
                latents = vae.encode(pixels).latent_dist
            found |= zip(part, zip(latents.mean.float(), latents.std.float(), strict=True), strict=True)
        return found

    def batch(self, update: int, keywords: Sequence[int], scheduler: Any) -> Batch:
        """The samples of one update for some of the keywords."""
        device = self.pipeline.unet.device
        own = [(index, self.examples[index], self.examples[index].items[update]) for index in keywords]
        means, deviations = zip(*(self._posteriors[index, item.image] for index, _, item in own), strict=True)
        draws = normal([item.seed for *_, item in own], (2, *means[0].shape)).to(device)
        clean = torch.stack(means) + torch.stack(deviations) * draws[:, 0]
        timesteps = torch.tensor([item.timestep for *_, item in own], device=device)
        masks = np.stack([data.masks[item.image] for _, data, item in own])
        return Batch(
            scheduler.add_noise(clean * self.pipeline.vae.config.scaling_factor, draws[:, 1], timesteps),
            timesteps,
            torch.stack([data.texts[item.prompt] for _, data, item in own]).to(device),
            torch.tensor(list(keywords), device=device),
            torch.from_numpy(masks if self.settings.masks else np.ones_like(masks)).to(device),
            torch.stack([data.tokens[item.prompt] for _, data, item in own]).to(device),
        )


def train(unet: Any, adapters: Adapters, samples: Samples, scheduler: Any) -> list[list[float]]:
    """Train all additions, every one as if it were alone; `unet` gets processors. Returns the losses, [update][keyword].

    The optimiser treats every number by itself and gradients are bounded per keyword, so training the keywords together takes the same
    steps as one after the other.
    """
    settings, count = samples.settings, len(samples.examples)
    watch = watched(unet, adapters)
    optimizer = torch.optim.AdamW(
        adapters.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    groups = [
        range(count)[start : start + settings.keyword_batch]
        for start in range(0, count, settings.keyword_batch)
    ]
    losses = []
    for update in range(settings.iterations):
        optimizer.zero_grad()
        own: list[float] = []
        for group in groups:
            norms = attention_norms(unet, watch, samples.batch(update, group, scheduler), settings.compute)
            checked(norms.sum(), update)
            norms.sum().backward()
            own += norms.tolist()
        clip_each(adapters.parameters, settings.max_grad_norm)
        optimizer.step()
        losses.append(own)
    return losses
