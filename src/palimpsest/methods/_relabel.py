"""What SalUn and EraseDiff share: unsafe images whose prediction is trained towards that for a harmless caption,
beside safe images with the usual denoising loss.

    L_f = mean (e(q(z, t, n), t, bad) - stop-gradient e(q(z', t, n), t, good))^2
    L_r = mean (e(q(r, s, m), s, own) - m)^2

z and z' are two samples of the same forget image's posterior, r one of a remain image; q noises latents. The target
of L_f comes from the network that is being trained.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from palimpsest.methods._training import Dtype, normal, predict
from palimpsest.methods.contract import ImageSet, Need, Target, ThemeTarget, TrainingData
from palimpsest.sampling.embeddings import encode, token_count

log = logging.getLogger(__name__)
Order = Literal["shuffled", "given", "first"]
Posterior = Literal["samples", "mean"]


@dataclass(frozen=True)
class Material:
    """Training images uint8 [N, H, W, 3] with one caption each; a forget image has the harmless one, `good`, too."""

    forget: np.ndarray
    bad: tuple[str, ...]
    good: tuple[str, ...]
    remain: np.ndarray
    own: tuple[str, ...]


def relabelled(prompt: str, theme: ThemeTarget, surrogate: str | None) -> str:
    """The harmless caption of an image made from `prompt`.

    Without a `surrogate` text the theme's surrogate takes the place of the longest keyword found as whole words; a
    prompt without a keyword is replaced as a whole.
    """
    if surrogate is not None:
        return surrogate.replace("{safe}", theme.safe)
    for word in sorted(theme.keywords, key=len, reverse=True):
        changed, times = re.subn(
            rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: theme.safe, prompt, flags=re.IGNORECASE
        )
        if times:
            return changed
    return theme.safe


def material(
    pipeline: Any, target: Target, data: TrainingData, surrogate: str | None, batch_size: int
) -> Material:
    """Images and captions of all themes. Raises ValueError for input that nothing can be learned from."""
    from palimpsest.methods._cross_attention import weight_names

    weight_names(pipeline.unet, ("to_k",))
    themes = {theme.name: theme for theme in target.themes}
    for theme in themes.values():
        for word in theme.keywords:
            if word.casefold().strip() == theme.safe.casefold().strip():
                raise ValueError(
                    f"keyword {word!r} of theme {theme.name!r} is its own surrogate; set `safe` of the theme to "
                    "what should be drawn instead"
                )
        for text in (*theme.keywords, theme.safe):
            if not token_count(pipeline, text):
                raise ValueError(f"theme {theme.name!r}: {text!r} has no tokens; use words, or leave it out")
    forget, remain = (_images(data, role, themes, batch_size) for role in ("target_images", "safe_images"))
    bad = tuple(prompt for part in forget for prompt in part.prompts)
    good = tuple(
        relabelled(prompt, themes[part.theme], surrogate) for part in forget for prompt in part.prompts
    )
    same = sum(a == b for a, b in zip(bad, good, strict=True))
    if same == len(bad):
        raise ValueError(
            f"the captions of all {same} target images are harmless already, such as {bad[0]!r}; target images need "
            "prompts with keywords of their theme"
        )
    if same:
        log.warning("%d of %d target images have a caption without a keyword", same, len(bad))
    own = tuple(prompt for part in remain for prompt in part.prompts)
    stacks = (np.concatenate([part.images for part in parts]) for parts in (forget, remain))
    return Material(next(stacks), bad, good, next(stacks), own)


def _images(
    data: TrainingData, role: Need, themes: dict[str, ThemeTarget], batch_size: int
) -> list[ImageSet]:
    sets = data.role(role)
    odd = sorted({part.theme for part in sets} - set(themes))
    if odd:
        raise ValueError(f"{role} of themes {odd} were given; the target has {sorted(themes)}")
    count = sum(len(part.images) for part in sets)
    if count < batch_size:
        raise ValueError(
            f"{count} {role} are fewer than a batch of {batch_size}; lower batch_size or make more images "
            "(training_images)"
        )
    return sets


@dataclass(frozen=True)
class Draws:
    """Everything random of an optimisation, drawn in advance; each tensor is [updates, batch_size].

    forget, remain: which image. *_times: timesteps. *_seeds: of three normal draws for a forget image (both posterior
    samples, the noise) and of two for a remain image (posterior sample, noise).
    """

    forget: Tensor
    remain: Tensor
    forget_times: Tensor
    remain_times: Tensor
    forget_seeds: Tensor
    remain_seeds: Tensor


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Batches of one pass over the images; the last one is filled up from the start."""
    return -(-images // batch_size)


def draw(
    counts: tuple[int, int], shape: tuple[int, int], order: Order, timesteps: int, generator: torch.Generator
) -> Draws:
    """Draw for all updates. counts: of forget and remain images; shape: (updates, batch_size).

    order: "shuffled" goes through each set in a new order every time; "given" takes batches as the sets are, anew every
    pass over the forget images; "first" draws one batch and keeps it.
    """
    epoch = batches_per_epoch(counts[0], shape[1])
    forget, remain = (_order(count, shape, order, epoch, generator) for count in counts)
    times = [torch.randint(timesteps, shape, generator=generator) for _ in range(2)]
    seeds = [torch.randint(2**62, shape, generator=generator) for _ in range(2)]
    return Draws(forget, remain, *times, *seeds)


def _order(
    count: int, shape: tuple[int, int], order: Order, epoch: int, generator: torch.Generator
) -> Tensor:
    updates, batch = shape
    if order == "given":
        return ((torch.arange(updates) % epoch)[:, None] * batch + torch.arange(batch)) % count
    if order == "first":
        return torch.randperm(count, generator=generator)[:batch].expand(updates, -1).clone()
    passes = -(-updates * batch // count)
    stream = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    return stream[: updates * batch].reshape(shape)


@dataclass(frozen=True)
class Samples:
    """A batch for the UNet: latents [N, C, h, w], timesteps [N], texts [N, L, D], and what is to be predicted."""

    latents: Tensor
    timesteps: Tensor
    texts: Tensor
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def part(self, rows: slice) -> Self:
        """Some of the samples."""
        targets = None if self.targets is None else self.targets[rows]
        return type(self)(self.latents[rows], self.timesteps[rows], self.texts[rows], targets)

    def parts(self, size: int) -> list[Self]:
        """All samples, at most `size` at a time."""
        return [self.part(slice(start, start + size)) for start in range(0, len(self), size)]


def joined(batches: Sequence[Samples]) -> Samples:
    """One batch of several; all have targets."""
    fields = ("latents", "timesteps", "texts", "targets")
    return Samples(*(torch.cat([getattr(batch, name) for batch in batches]) for name in fields))


@dataclass(frozen=True)
class Posteriors:
    """Means and deviations [N, C, h, w] of latents before scaling."""

    means: Tensor
    deviations: Tensor

    def sample(self, rows: Tensor, noise: Tensor, scale: float) -> Tensor:
        """Scaled latents of some images, one standard normal [C, h, w] each."""
        return (self.means[rows] + self.deviations[rows] * noise) * scale


@torch.no_grad()
def posteriors(vae: Any, images: np.ndarray, kind: Posterior, batch: int) -> Posteriors:
    """Encode images uint8 [N, H, W, 3], each once; with "mean" every sample will be the mean."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    found = [
        vae.encode((part.to(vae.device).float() / 127.5 - 1.0).to(vae.dtype)).latent_dist
        for part in pixels.split(batch)
    ]
    means = torch.cat([posterior.mean.float() for posterior in found])
    if kind == "mean":
        return Posteriors(means, torch.zeros_like(means))
    return Posteriors(means, torch.cat([posterior.std.float() for posterior in found]))


@dataclass(frozen=True)
class Evaluation:
    """How UNets are evaluated: the arithmetic, and how many samples at a time."""

    dtype: Dtype
    batch: int

    @torch.no_grad()
    def predictions(self, unet: Any, samples: Samples) -> Tensor:
        """Without gradients, [N, C, h, w]."""
        return torch.cat(
            [predict(unet, p.latents, p.timesteps, p.texts, self.dtype) for p in samples.parts(self.batch)]
        )

    def backward(self, unet: Any, samples: Samples, weights: Tensor) -> Tensor:
        """Add the gradients of sum(weights * errors) to those the parameters have; returns the errors.

        weights: [N]. The errors [N] are mean squared ones per sample.
        """
        found = []
        for part, weight in zip(samples.parts(self.batch), weights.split(self.batch), strict=True):
            noise = predict(unet, part.latents, part.timesteps, part.texts, self.dtype)
            errors = (noise - part.targets).square().flatten(1).mean(1)
            (weight * errors).sum().backward()
            found.append(errors.detach())
        return torch.cat(found)


def denoising_target(scheduler: Any, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the denoising loss asks for: the noise, or the velocity for a checkpoint that predicts it."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, times)
    return noise


@dataclass(frozen=True)
class Bank:
    """Encoded images and captions, and the draws that make batches of them.

    texts: embeddings [K, L, D] of all captions; bad, good, own: which of them an image has.
    """

    scheduler: Any
    scale: float
    draws: Draws
    forget: Posteriors
    remain: Posteriors
    texts: Tensor
    bad: Tensor
    good: Tensor
    own: Tensor

    def forget_samples(self, update: int) -> tuple[Samples, Samples]:
        """Noised forget images under the bad caption and, from another posterior sample, under the good one."""
        rows = self.draws.forget[update]
        times = self.draws.forget_times[update].to(self.texts.device)
        draws = normal(self.draws.forget_seeds[update].tolist(), (3, *self.forget.means.shape[1:]))
        first, second, noise = draws.to(self.texts.device).unbind(1)
        bad, good = (
            self.scheduler.add_noise(self.forget.sample(rows, one, self.scale), noise, times)
            for one in (first, second)
        )
        texts = [self.texts[caption[rows]] for caption in (self.bad, self.good)]
        return Samples(bad, times, texts[0]), Samples(good, times, texts[1])

    def remain_samples(self, update: int) -> Samples:
        """Noised remain images under their own captions, with the noise as target."""
        rows = self.draws.remain[update]
        times = self.draws.remain_times[update].to(self.texts.device)
        draws = normal(self.draws.remain_seeds[update].tolist(), (2, *self.remain.means.shape[1:]))
        first, noise = draws.to(self.texts.device).unbind(1)
        latents = self.remain.sample(rows, first, self.scale)
        target = denoising_target(self.scheduler, latents, noise, times)
        noised = self.scheduler.add_noise(latents, noise, times)
        return Samples(noised, times, self.texts[self.own[rows]], target)

    def forget_batch(self, unet: Any, update: int, how: Evaluation) -> Samples:
        """The batch of L_f: its targets are what `unet` predicts now."""
        bad, good = self.forget_samples(update)
        return Samples(bad.latents, bad.timesteps, bad.texts, how.predictions(unet, good))


def training_scheduler(pipeline: Any) -> Any:
    """The checkpoint's noise schedule, as it was trained with."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipeline.scheduler.config)


def bank(pipeline: Any, found: Material, draws: Draws, kind: Posterior, batch: int) -> Bank:
    """Encode the images and captions that `draws` uses, each once, `batch` at a time."""
    used, forget = torch.unique(draws.forget, return_inverse=True)
    kept, remain = torch.unique(draws.remain, return_inverse=True)
    captions = (
        [found.bad[i] for i in used],
        [found.good[i] for i in used],
        [found.own[i] for i in kept],
    )
    place = {text: index for index, text in enumerate(dict.fromkeys(chain(*captions)))}
    bad, good, own = (torch.tensor([place[text] for text in group]) for group in captions)
    pictures = found.forget[used.numpy()], found.remain[kept.numpy()]
    renumbered = Draws(
        forget, remain, draws.forget_times, draws.remain_times, draws.forget_seeds, draws.remain_seeds
    )
    return Bank(
        training_scheduler(pipeline),
        pipeline.vae.config.scaling_factor,
        renumbered,
        posteriors(pipeline.vae, pictures[0], kind, batch),
        posteriors(pipeline.vae, pictures[1], kind, batch),
        encode(pipeline, list(place)).float(),
        bad,
        good,
        own,
    )
