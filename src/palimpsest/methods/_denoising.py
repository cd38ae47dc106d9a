"""Training images as the noised latents that a denoising loss needs, each image and each text encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.methods._training import Dtype, normal, predict

if TYPE_CHECKING:
    from palimpsest.sampling.pipeline import Pipeline


@dataclass(frozen=True)
class Batch:
    """One batch of draws, each [n]: rows of the images, timesteps, and seeds of the noise."""

    rows: Tensor
    timesteps: Tensor
    seeds: Tensor


@dataclass(frozen=True)
class Noisy:
    """Images as the autoencoder's posteriors, with their texts.

    means, deviations: float32 [N, C, h, w], before scaling. texts: embeddings [K, 77, D] of the different
    prompts; which: [N], the text of each image. scheduler: of training (DDPM). scale: the autoencoder's.
    """

    means: Tensor
    deviations: Tensor
    texts: Tensor
    which: Tensor
    scheduler: Any
    scale: float

    def __len__(self) -> int:
        return len(self.means)

    @property
    def timesteps(self) -> int:
        """How many timesteps the model was trained with (1000)."""
        return int(self.scheduler.config.num_train_timesteps)

    def embeddings(self, batch: Batch) -> Tensor:
        """The texts of a batch, [n, 77, D]."""
        return self.texts[self.which[batch.rows.to(self.which.device)]]

    def latents(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """x_t of a batch and what the UNet should say, both [n, C, h, w]. The posterior is sampled anew."""
        rows, timesteps = batch.rows.to(self.means.device), batch.timesteps.to(self.means.device)
        draws = normal(batch.seeds.tolist(), (2, *self.means.shape[1:])).to(self.means.device)
        clean = (self.means[rows] + self.deviations[rows] * draws[:, 0]) * self.scale
        noise = draws[:, 1]
        kind = self.scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type {kind!r}: allowed are 'epsilon' and 'v_prediction'")
        wanted = noise if kind == "epsilon" else self.scheduler.get_velocity(clean, noise, timesteps)
        return self.scheduler.add_noise(clean, noise, timesteps), wanted

    def loss(self, unet: Any, batch: Batch, compute: Dtype) -> Tensor:
        """The mean squared error of the UNet on a batch."""
        latents, wanted = self.latents(batch)
        told = batch.timesteps.to(latents.device)
        predicted = predict(unet, latents, told, self.embeddings(batch), compute)
        return torch.nn.functional.mse_loss(predicted, wanted)


def noisy(pipeline: Pipeline, images: np.ndarray, prompts: Sequence[str], at_once: int = 32) -> Noisy:
    """Encode images uint8 [N, H, W, 3] and their prompts, `at_once` images together."""
    from diffusers.schedulers import DDPMScheduler

    from palimpsest.sampling.embeddings import encode

    vae, means, deviations = pipeline.vae, [], []
    for start in range(0, len(images), at_once):
        part = torch.from_numpy(images[start : start + at_once].astype(np.float32) / 127.5 - 1.0)
        with torch.no_grad():
            found = vae.encode(part.permute(0, 3, 1, 2).to(vae.device, vae.dtype)).latent_dist
        means.append(found.mean.float())
        deviations.append(found.std.float())
    different = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    which = torch.tensor([different[prompt] for prompt in prompts], device=pipeline.device)
    texts = encode(pipeline, list(different)).float()
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    return Noisy(
        torch.cat(means), torch.cat(deviations), texts, which, scheduler, float(vae.config.scaling_factor)
    )
