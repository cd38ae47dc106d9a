"""Which weights a forgetting loss depends on most: the mask of SalUn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.methods._relabel import (
    Evaluation,
    Material,
    Posterior,
    Posteriors,
    denoising_target,
    posteriors,
    training_scheduler,
)
from palimpsest.methods._training import arithmetic, normal, trainable_copy
from palimpsest.sampling.embeddings import encode_with_unconditional


@dataclass(frozen=True)
class MaskDraws:
    """Everything random of the mask, each [images]: which forget image, its timestep, and the seed of two normal draws
    (posterior sample, noise).
    """

    images: Tensor
    times: Tensor
    seeds: Tensor


def draw_mask(count: int, most: int | None, timesteps: int, generator: torch.Generator) -> MaskDraws:
    """Every image once, in order; with `most` that many of them, chosen at random."""
    images = torch.arange(count)
    if most is not None and most < count:
        images = torch.randperm(count, generator=generator)[:most].sort().values
    times = torch.randint(timesteps, images.shape, generator=generator)
    return MaskDraws(images, times, torch.randint(2**62, images.shape, generator=generator))


def gradients(
    pipeline: Any, found: Material, draws: MaskDraws, guidance: float, kind: Posterior, how: Evaluation
) -> dict[str, Tensor]:
    """Gradient of the forgetting loss for all parameters of the UNet, in the module's order.

    The loss is the mean squared error of (1 + guidance) e(x, t, bad) - guidance e(x, t, empty) against the noise. Signed
    gradients are summed over all images, so that batches change nothing but the last bits. Raises FloatingPointError
    when they are not finite.
    """
    student = trainable_copy(pipeline.unet, [name for name, _ in pipeline.unet.named_parameters()])
    encoded = posteriors(pipeline.vae, found.forget[draws.images.numpy()], kind, how.batch)
    captions = [found.bad[i] for i in draws.images]
    place = {text: index for index, text in enumerate(dict.fromkeys(["", *captions]))}
    table = encode_with_unconditional(pipeline, list(place)[1:]).float()
    which = torch.tensor([place[text] for text in captions])
    # Two evaluations a sample: half of the batch each.
    for rows in torch.arange(len(which)).split(max(1, how.batch // 2)):
        latents, times, target = _noised(pipeline, encoded, draws, rows)
        texts = torch.cat([table[which[rows]], table[:1].expand(len(rows), -1, -1)])
        with arithmetic(how.dtype, latents.device):
            noise = student(latents.repeat(2, 1, 1, 1), times.repeat(2), texts).sample.float()
        bad, empty = noise.chunk(2)
        guided = (1 + guidance) * bad - guidance * empty
        ((guided - target).square().flatten(1).mean(1).sum() / len(which)).backward()
    found_gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in student.named_parameters()
    }
    odd = [name for name, gradient in found_gradients.items() if not gradient.isfinite().all()]
    if odd:
        raise FloatingPointError(f"the mask's gradient of {odd[0]} is not finite; set compute to float32")
    return found_gradients


def _noised(
    pipeline: Any, encoded: Posteriors, draws: MaskDraws, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    scheduler, device = training_scheduler(pipeline), encoded.means.device
    first, noise = normal(draws.seeds[rows].tolist(), (2, *encoded.means.shape[1:])).to(device).unbind(1)
    times = draws.times[rows].to(device)
    latents = encoded.sample(rows, first, pipeline.vae.config.scaling_factor)
    target = denoising_target(scheduler, latents, noise, times)
    return scheduler.add_noise(latents, noise, times), times, target


def largest(gradients: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Boolean masks of the int(share * N) entries of largest magnitude of all N float32 ones; of equal ones the first.

    Exact without sorting: the bits of a magnitude, read as a whole number, have the order of the magnitudes, so two
    histograms of 16 bits find the smallest entry that is taken.
    """
    magnitudes = {name: gradient.abs().view(torch.int32) for name, gradient in gradients.items()}
    wanted = int(share * sum(tensor.numel() for tensor in magnitudes.values()))
    if wanted == 0:
        return {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in magnitudes.items()}
    high, left = _place(magnitudes.values(), lambda bits: bits >> 16, wanted)
    low, left = _place(magnitudes.values(), lambda bits: bits[bits >> 16 == high] & 0xFFFF, left)
    threshold, masks = (high << 16) | low, {}
    for name, bits in magnitudes.items():
        mask = bits > threshold
        equal = (bits == threshold).flatten().nonzero()[:left, 0]
        mask.view(-1)[equal] = True
        left -= len(equal)
        masks[name] = mask
    return masks


def _place(tensors: Any, digits: Any, wanted: int) -> tuple[int, int]:
    """The digit that the `wanted`-th largest entry has, and how many entries with that digit are wanted."""
    counts: Any = sum(torch.bincount(digits(bits).flatten(), minlength=1 << 16) for bits in tensors)
    above = counts.flip(0).cumsum(0).flip(0)  # entries with this digit or a larger one
    digit = int((above >= wanted).nonzero()[-1])
    return digit, wanted - int(above[digit] - counts[digit])
