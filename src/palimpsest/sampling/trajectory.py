"""Partly denoised latents, for methods that train on what the model sees half way."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


@torch.no_grad()
def partial_denoise(
    unet: Any,
    scheduler: Any,
    noise: Tensor,
    cond: Tensor,
    uncond: Tensor,
    stops: Tensor,
    guidance: float,
    first: int = 0,
    batch: int = 32,
) -> Tensor:
    """What the UNet would be shown after `stops[i]` scheduler steps of sample i: float32 [N, C, h, w].

    scheduler: with its timesteps set; it is left as it was. noise: standard normal [N, C, h, w]; the scheduler's initial sigma is
    applied here, and the result is scaled for the next timestep (after the last one it is the clean latent). cond, uncond: embeddings
    [N or 1, 77, D]. stops: whole numbers [N] in 0..(timesteps - first). first: timesteps skipped at the beginning, the noise being
    taken for the level of the first one kept. batch: samples per UNet call. At guidance 1 the uncond branch is not evaluated. A
    sample that has reached its stop is not evaluated any more. Raises ValueError for stops outside the range.
    """
    timesteps = scheduler.timesteps[first:]
    if len(stops) != len(noise):
        raise ValueError(f"{len(stops)} stops for {len(noise)} samples; give one per sample")
    if not len(stops):
        return noise.float()
    if stops.min() < 0 or stops.max() > len(timesteps):
        raise ValueError(f"stops {int(stops.min())}..{int(stops.max())} are outside of 0..{len(timesteps)}, the steps of the scheduler")
    cond, uncond = (text.to(unet.dtype).expand(len(noise), -1, -1) for text in (cond, uncond))
    result = torch.empty_like(noise, dtype=torch.float32)
    # Samples that stop together share a batch, so few batches run to the end.
    for rows in torch.argsort(stops, stable=True).split(batch):
        texts = (uncond[rows], cond[rows])
        result[rows] = _together(unet, copy.deepcopy(scheduler), noise[rows].float(), texts, stops[rows], guidance, timesteps)
    return result


def _together(
    unet: Any, scheduler: Any, noise: Tensor, texts: tuple[Tensor, Tensor], stops: Tensor, guidance: float, timesteps: Tensor
) -> Tensor:
    latents = noise * scheduler.init_noise_sigma
    inputs = scheduler.scale_model_input(latents, timesteps[0]) if len(timesteps) else latents
    result = inputs.clone()
    for index in range(int(stops.max())):
        active = stops > index
        # The scheduler always steps the whole batch, because multistep schedulers remember predictions of that shape.
        guided = torch.zeros_like(latents)
        guided[active] = _guided(unet, inputs[active], timesteps[index], texts[0][active], texts[1][active], guidance)
        latents = scheduler.step(guided, timesteps[index], latents).prev_sample
        inputs = scheduler.scale_model_input(latents, timesteps[index + 1]) if index + 1 < len(timesteps) else latents
        done = stops == index + 1
        result[done] = inputs[done]
    return result


def _guided(unet: Any, inputs: Tensor, timestep: Tensor, uncond: Tensor, cond: Tensor, guidance: float) -> Tensor:
    inputs = inputs.to(unet.dtype)
    if guidance == 1.0:
        return unet(inputs, timestep, encoder_hidden_states=cond, return_dict=False)[0].float()
    both = unet(inputs.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=torch.cat([uncond, cond]), return_dict=False)[0]
    base, asked = both.float().chunk(2)
    return base + guidance * (asked - base)


def evaluations(stops: Tensor, guidance: float) -> int:
    """Forward passes of single samples that `partial_denoise` makes."""
    return int(stops.sum()) * (1 if guidance == 1.0 else 2)
