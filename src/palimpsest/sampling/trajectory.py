"""Partly denoised latents, for methods that train on what the model sees half way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from palimpsest.sampling import schedulers

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.sampling.pipeline import Pipeline
    from palimpsest.specs import Sampler


@torch.no_grad()
def partial_denoise(
    pipeline: Pipeline,
    cond: Tensor,
    uncond: Tensor,
    noise: Tensor,
    stop_steps: Sequence[int],
    sampler: Sampler,
    start: int = 0,
) -> Tensor:
    """Latents after `stop_steps[i]` scheduler steps of sample i: float32 [N, C, h, w]. Hooks of the pipeline
    are not called.

    cond, uncond: embeddings [N or 1, 77, D]. noise: standard normal [N, C, h, w], for instance of
    `initial_noise`; the scheduler's initial sigma is applied here. stop_steps: in 0..(timesteps - start); 0
    gives the initial noise back. start: timesteps skipped at the beginning, the noise being taken for the
    level of the first one kept (the ESD code of 2023 skips one). At `sampler.guidance` <= 1 the uncond branch
    is not evaluated, and a sample that has reached its stop is not evaluated any more. Raises ValueError for
    a stop outside the range.
    """
    timesteps = schedulers.build(sampler.name, pipeline.scheduler.config, sampler.steps).timesteps
    most = len(timesteps) - start
    stops = torch.as_tensor(list(stop_steps), dtype=torch.long, device=pipeline.device)
    if len(stops) != len(noise):
        raise ValueError(f"{len(stops)} stop_steps for {len(noise)} samples; give one per sample")
    if len(stops) and (stops.min() < 0 or stops.max() > most):
        raise ValueError(f"stop_steps {int(stops.min())}..{int(stops.max())} are outside of 0..{most}")
    noise = noise.to(pipeline.device, torch.float32)
    result = torch.empty_like(noise)
    texts = [text.to(pipeline.device, pipeline.dtype).expand(len(noise), -1, -1) for text in (uncond, cond)]
    # Samples that stop together share a batch, so that few batches run to the end.
    for rows in torch.argsort(stops, stable=True).split(sampler.batch):
        result[rows] = _batch(
            pipeline, [text[rows] for text in texts], noise[rows], stops[rows], sampler, start
        )
    return result


def _batch(
    pipeline: Pipeline, texts: Sequence[Tensor], noise: Tensor, stops: Tensor, sampler: Sampler, start: int
) -> Tensor:
    scheduler = schedulers.build(sampler.name, pipeline.scheduler.config, sampler.steps, pipeline.device)
    if start and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    latents = noise * scheduler.init_noise_sigma
    result = latents.clone()
    for index in range(int(stops.max()) if len(stops) else 0):
        timestep, active = scheduler.timesteps[start + index], stops > index
        inputs = scheduler.scale_model_input(latents, timestep)[active]
        # The scheduler always steps the whole batch, because multistep ones remember predictions of that
        # shape.
        guided = torch.zeros_like(latents)
        guided[active] = _guided(
            pipeline, inputs, timestep, [text[active] for text in texts], sampler.guidance
        )
        latents = scheduler.step(guided, timestep, latents).prev_sample
        done = stops == index + 1
        result[done] = latents[done]
    return result


def _guided(
    pipeline: Pipeline, inputs: Tensor, timestep: Tensor, texts: Sequence[Tensor], guidance: float
) -> Tensor:
    used = texts if guidance > 1 else texts[1:]
    batch = inputs.to(pipeline.dtype).repeat(len(used), 1, 1, 1)
    noise = pipeline.unet(batch, timestep, encoder_hidden_states=torch.cat(list(used)), return_dict=False)[
        0
    ].float()
    if len(used) == 1:
        return noise
    base, asked = noise.chunk(2)
    return base + guidance * (asked - base)
