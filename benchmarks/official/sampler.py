"""The sampler of the CompVis code base as its training scripts use it: a latent per call, from the noise on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.pipeline import Pipeline


def noise_of(pipeline: Pipeline, seeds: list[int]) -> Tensor:
    """Standard normal latents [N, C, h, w], the ones the method draws."""
    from palimpsest.methods._training import normal

    config = pipeline.unet.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    return normal(seeds, shape).to(pipeline.device)


@torch.no_grad()
def denoised(
    pipeline: Pipeline, unet: Any, cond: Tensor, noise: Tensor, steps: int, stop: int, guidance: float
) -> Tensor:
    """Latents [N, C, h, w] after `stop` steps of DDIM on a grid of `steps` without its largest timestep.

    The empty prompt is encoded at every call, once per latent; cond and uncond go through the UNet together.
    """
    empty = encode(pipeline, [""] * len(noise))
    texts = torch.cat([empty, cond.expand(len(noise), -1, -1)])
    trained = pipeline.scheduler.config.num_train_timesteps
    grid = [1 + k * (trained // steps) for k in range(steps)][:-1][::-1]
    levels = pipeline.scheduler.alphas_cumprod.to(noise.device, torch.float64)
    latents = noise
    for index in range(stop):
        now, after = grid[index], grid[index + 1] if index + 1 < len(grid) else 0
        told = torch.full((2 * len(noise),), now, device=noise.device)
        plain, full = unet(torch.cat([latents] * 2), told, texts).sample.chunk(2)
        guided = plain + guidance * (full - plain)
        clean = (latents - (1 - levels[now]).sqrt() * guided) / levels[now].sqrt()
        latents = (levels[after].sqrt() * clean + (1 - levels[after]).sqrt() * guided).to(noise.dtype)
    return latents
