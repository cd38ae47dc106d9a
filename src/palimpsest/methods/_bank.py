"""Training latents and frozen predictions made ahead of their use, for methods whose UNet is never trained.

A partly denoised latent, and what the frozen UNet predicts at it, do not depend on a text encoder in
training. So they are made in large batches, samples that stop early first, with a bounded number in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from palimpsest.methods._stops import Recipe, skipped
from palimpsest.methods._training import Dtype, arithmetic, normal, predict
from palimpsest.sampling.trajectory import partial_denoise

if TYPE_CHECKING:
    from palimpsest.sampling.pipeline import Pipeline
    from palimpsest.specs import Sampler


@dataclass(frozen=True)
class Sample:
    """One training latent. text: index of the text that leads to it; stop: sampler steps; timestep: what the
    UNet is told; seed: of the initial noise; erased: whether the target is the negatively guided prediction
    (else the prediction for the text).
    """

    text: int
    stop: int
    timestep: int
    seed: int
    erased: bool = False


@dataclass(frozen=True)
class Batch:
    """Latents and targets [N, C, h, w] and timesteps [N], in the order of their samples."""

    latents: Tensor
    timesteps: Tensor
    targets: Tensor

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.latents[rows], self.timesteps[rows], self.targets[rows])


@dataclass(frozen=True)
class Bank:
    """What latents and targets are made with.

    frozen: the base, UNet in float32, with the scheduler of the training latents. texts: embeddings
    [T, 77, D]; empty: of the empty prompt [1, 77, D]. eta: weight of the negative guidance.
    """

    frozen: Pipeline
    sampler: Sampler
    recipe: Recipe
    texts: Tensor
    empty: Tensor
    eta: float
    compute: Dtype

    @torch.no_grad()
    def prepare(self, samples: Sequence[Sample]) -> Batch:
        """The samples' latents and targets, e*(text) or, when erased, e*(0) - eta (e*(text) - e*(0))."""
        config, device = self.frozen.unet.config, self.empty.device
        which = torch.tensor([sample.text for sample in samples], device=device)
        told = torch.tensor([sample.timestep for sample in samples], device=device)
        shape = (config.in_channels, config.sample_size, config.sample_size)
        noise = normal([sample.seed for sample in samples], shape)
        stops, start = [sample.stop for sample in samples], skipped(self.recipe)
        with arithmetic(self.compute, device):
            latents = partial_denoise(
                self.frozen, self.texts[which], self.empty, noise, stops, self.sampler, start
            )
        targets = self._predictions(latents, told, self.texts[which])
        rows = torch.tensor([i for i, sample in enumerate(samples) if sample.erased], device=device)
        if len(rows):
            empty = self._predictions(latents[rows], told[rows], self.empty.expand(len(rows), -1, -1))
            targets[rows] = empty - self.eta * (targets[rows] - empty)
        return Batch(latents, told, targets)

    def _predictions(self, latents: Tensor, told: Tensor, texts: Tensor) -> Tensor:
        parts = torch.arange(len(latents), device=latents.device).split(self.sampler.batch)
        return torch.cat(
            [predict(self.frozen.unet, latents[p], told[p], texts[p], self.compute) for p in parts]
        )

    def stream(self, batches: Iterable[Sequence[Sample]], ahead: int) -> Iterator[Batch]:
        """The batches one by one, made in groups of at least `ahead` samples."""
        waiting: list[Sequence[Sample]] = []
        for batch in batches:
            waiting.append(batch)
            if sum(map(len, waiting)) >= ahead:
                yield from self._group(waiting)
                waiting = []
        if waiting:
            yield from self._group(waiting)

    def _group(self, batches: Sequence[Sequence[Sample]]) -> Iterator[Batch]:
        ready, start = self.prepare([sample for batch in batches for sample in batch]), 0
        for batch in batches:
            yield ready[start : start + len(batch)]
            start += len(batch)

    def evaluations(self, samples: Iterable[Sample]) -> int:
        """UNet evaluations of single samples that `prepare` makes for them."""
        branches = 2 if self.sampler.guidance > 1 else 1
        return sum(branches * sample.stop + 1 + sample.erased for sample in samples)
