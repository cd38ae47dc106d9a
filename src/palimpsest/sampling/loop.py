"""The one sampling loop of the project: prompts and seeds in, images out, in batches, with the hooks of
methods called on the way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from palimpsest.sampling import schedulers
from palimpsest.sampling.embeddings import encode_cached, unconditional_cached
from palimpsest.sampling.fast import prepared
from palimpsest.sampling.frames import fitted
from palimpsest.sampling.memory import Fitting, Halving, peak_memory_mb
from palimpsest.sampling.noise import initial_noise
from palimpsest.sampling.pipeline import Conditioning, Hook, Pipeline, Step
from palimpsest.sampling.projections import projected_once

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from palimpsest.specs import Sampler

# The last three are of images made elsewhere: given, refused by whoever was asked for them, not given.
Outcome = Literal[
    "generated", "blocked_prompt", "rewritten", "aborted", "edited", "blocked_image",
    "provided", "refused", "not_provided",
]  # fmt: skip
# The decoder needs about 1 GB per megapixel and image in float32, so it works through a batch in slices of
# this many pixels.
DECODED_PIXELS = 2**19
GENERATED: tuple[Outcome, str] = ("generated", "")


@dataclass(frozen=True)
class Request:
    """One image to make. seed: of its initial noise."""

    image_id: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Generation:
    """What became of a request.

    prompt: the one asked for, also when a guard rewrote it (`reason` then holds the new one). image: uint8
    [H, W, 3], None for blocked and aborted requests and for images that were withheld. seconds: wall time of its batch shared evenly,
    None for an image made elsewhere. peak_memory_mb: of the process (of the device on CUDA) so far.
    """

    image_id: str
    prompt: str
    seed: int
    decision: Outcome
    reason: str
    image: np.ndarray | None
    seconds: float | None
    peak_memory_mb: float


def generate(
    pipeline: Pipeline,
    requests: Sequence[Request],
    sampler: Sampler,
    resolution: int,
    halvings: list[Halving] | None = None,
) -> Iterator[Generation]:
    """Make the images of `requests`, one Generation each, in the given order.

    sampler: name, steps, guidance, dtype of UNet and decoder, batch size. At guidance <= 1 only the prompt
    branch is evaluated, as in diffusers. Latents, guidance and scheduler stay in float32 whatever the dtype.
    When memory runs out, the batch is made again in halves and stays at that size; each time is added to
    `halvings`. Raises ValueError for a resolution the checkpoint cannot make and for settings no scheduler
    takes, NotEnoughMemory when one image alone is too much.
    """
    side = pipeline.resolution or resolution
    latent_shape(pipeline, side)
    pipeline = prepared(pipeline, sampler)
    fitting = Fitting(sampler.batch, side, pipeline.device, f"{sampler.name} in {sampler.dtype}", halvings)
    for part in fitting.batches(requests):
        made: list[Generation] = []
        try:
            made = _batch(pipeline, part, sampler, resolution)
        except (RuntimeError, MemoryError) as error:
            fitting.failed(len(part), error)
        if not made:
            fitting.release()
        yield from made


def latent_shape(pipeline: Pipeline, resolution: int) -> tuple[int, int, int]:
    """[C, h, w] of the latents of one image. Raises ValueError when the side does not fit the checkpoint."""
    reduction = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    multiple = reduction * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if resolution % multiple:
        raise ValueError(
            f"model.resolution: {resolution} does not fit this checkpoint; it must be a multiple of "
            f"{multiple}"
        )
    side = resolution // reduction
    return pipeline.unet.config.in_channels, side, side


def _batch(
    pipeline: Pipeline, requests: Sequence[Request], sampler: Sampler, resolution: int
) -> list[Generation]:
    began = time.perf_counter()
    outcomes: dict[int, tuple[Outcome, str]] = {}
    prompts = _guard(pipeline.hooks, [request.prompt for request in requests], outcomes)
    kept = [i for i in range(len(requests)) if outcomes.get(i, GENERATED)[0] != "blocked_prompt"]
    images: dict[int, Any] = {}
    if kept:
        texts = [prompts[i] for i in kept]
        shape = latent_shape(pipeline, pipeline.resolution or resolution)
        noise = torch.stack([initial_noise(requests[i].seed, shape) for i in kept]).to(pipeline.device)
        decoded, stopped, edits, withheld = _make(pipeline, texts, noise, sampler, resolution)
        images = {i: decoded[k] for k, i in enumerate(kept) if k not in stopped and k not in withheld}
        outcomes |= {kept[k]: ("aborted", reason) for k, reason in stopped.items()}
        outcomes |= {kept[k]: ("edited", reason) for k, reason in edits.items() if k not in stopped}
        outcomes |= {kept[k]: ("blocked_image", reason) for k, reason in withheld.items() if k not in stopped}
    memory = peak_memory_mb(pipeline.device)
    seconds = (time.perf_counter() - began) / len(requests)
    return [
        Generation(
            request.image_id,
            request.prompt,
            request.seed,
            *outcomes.get(i, GENERATED),
            images.get(i),
            seconds,
            memory,
        )
        for i, request in enumerate(requests)
    ]


def _guard(
    hooks: Sequence[Hook], prompts: Sequence[str], outcomes: dict[int, tuple[Outcome, str]]
) -> list[str]:
    """The prompts after all guards; what they decided goes to `outcomes`. A blocked prompt is not shown to
    later guards.
    """
    texts = list(prompts)
    for hook in hooks:
        asked = [i for i in range(len(texts)) if outcomes.get(i, GENERATED)[0] != "blocked_prompt"]
        for i, decision in zip(asked, hook.guard([texts[i] for i in asked]) if asked else [], strict=True):
            if decision.action == "blocked_prompt":
                outcomes[i] = ("blocked_prompt", decision.reason)
            elif decision.action == "rewritten":
                if decision.prompt is None:
                    raise ValueError(
                        f"{type(hook).__name__}.guard rewrote {texts[i]!r} but gave no new prompt; set "
                        f"Decision.prompt"
                    )
                texts[i] = decision.prompt
                outcomes[i] = (
                    "rewritten",
                    "; ".join(part for part in (decision.reason, f"sampled as: {texts[i]}") if part),
                )
    return texts


@torch.no_grad()
def _make(
    pipeline: Pipeline, prompts: Sequence[str], noise: Tensor, sampler: Sampler, resolution: int
) -> tuple[np.ndarray, dict[int, str], dict[int, str], dict[int, str]]:
    """Images uint8 [B, H, W, 3], positions that were stopped, edited, and withheld (each with a reason)."""
    scheduler = schedulers.build(sampler.name, pipeline.scheduler.config, sampler.steps, pipeline.device)
    uncond = unconditional_cached(pipeline).expand(len(prompts), -1, -1)
    branches = {"uncond": uncond, "cond": encode_cached(pipeline, prompts)}
    conditioning = Conditioning(tuple(prompts), branches, noise * scheduler.init_noise_sigma)
    for hook in pipeline.hooks:
        conditioning = hook.embed(pipeline, conditioning)
    with projected_once(pipeline.unet, pipeline.hooks):
        latents, stopped = denoise(pipeline, conditioning, scheduler, sampler.guidance)
    if len(stopped) == len(prompts):
        return torch.empty(len(prompts), 0).numpy(), stopped, {}, {}
    images = scaled(decode(pipeline, latents), resolution)
    edits: dict[int, str] = {}
    for hook in pipeline.hooks:
        images, done = hook.edit(images, prompts)
        edits |= {i: "; ".join(filter(None, (edits.get(i), what))) for i, what in done.items()}
    withheld: dict[int, str] = {}
    for hook in pipeline.hooks:
        withheld |= {i: why for i, why in hook.withhold(images, prompts).items() if i not in withheld}
    return images.cpu().numpy(), stopped, edits, withheld


@torch.no_grad()
def denoise(
    pipeline: Pipeline, conditioning: Conditioning, scheduler: Any, guidance: float
) -> tuple[Tensor, dict[int, str]]:
    """Run the scheduler from the initial noise to clean latents [B, C, h, w] (float32); also the positions
    hooks stopped, and why.

    Stopped samples stay in the batch, so that the others do not change; the loop ends early when all are
    stopped.
    """
    if guidance <= 1:
        conditioning = replace(conditioning, branches={"cond": conditioning.branches["cond"]})
    hooks = [hook.begin(conditioning) for hook in pipeline.hooks]
    branches = conditioning.branches
    states = stacked(branches, pipeline.dtype)
    latents = conditioning.latents
    stopped: dict[int, str] = {}
    for index, timestep in enumerate(scheduler.timesteps):
        step = Step(index, len(scheduler.timesteps), timestep, tuple(conditioning.branches))
        texts = conditioning.branches
        for hook in hooks:
            texts = hook.states(step, texts)
        if texts is not branches:
            branches, states = texts, stacked(texts, pipeline.dtype)
        step = replace(step, branches=tuple(branches))
        predictions = predict(pipeline, hooks, step, scheduler.scale_model_input(latents, timestep), states)
        latents = scheduler.step(
            combine(hooks, step, predictions, latents, guidance), timestep, latents
        ).prev_sample
        for hook in hooks:
            latents, reasons = hook.after_step(step, latents)
            stopped |= {i: reason for i, reason in reasons.items() if i not in stopped}
        if len(stopped) == len(latents):
            break
    return latents, stopped


def stacked(branches: Mapping[str, Tensor], dtype: Any) -> Tensor:
    """The embeddings of all branches below each other: [branches * B, 77, D] in the UNet's dtype."""
    return torch.cat(list(branches.values())).to(dtype)


def predict(
    pipeline: Pipeline, hooks: Sequence[Hook], step: Step, inputs: Tensor, states: Tensor
) -> dict[str, Tensor]:
    """Noise predictions (float32 [B, C, h, w]) of all branches of `step` from one UNet call. states:
    [branches * B, 77, D].
    """
    count = len(step.branches)
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook.around(pipeline.unet, step))
        batch = inputs.to(pipeline.dtype).repeat(count, 1, 1, 1)
        noise = pipeline.unet(batch, step.timestep, encoder_hidden_states=states, return_dict=False)[0]
    return dict(zip(step.branches, noise.float().chunk(count), strict=True))


def combine(
    hooks: Sequence[Hook], step: Step, noise: Mapping[str, Tensor], latents: Tensor, guidance: float
) -> Tensor:
    """The guided prediction: of the first hook that gives one, else classifier-free guidance."""
    if guidance <= 1:
        return noise["cond"]
    for hook in hooks:
        guided = hook.guide(step, dict(noise), latents, guidance)
        if guided is not None:
            return guided
    return noise["uncond"] + guidance * (noise["cond"] - noise["uncond"])


@torch.no_grad()
def decode(pipeline: Pipeline, latents: Tensor) -> Tensor:
    """Images uint8 [B, H, W, 3] of clean latents [B, C, h, w], decoded in slices so that memory does not grow
    with the batch.
    """
    config = pipeline.vae.config
    side = latents.shape[-1] * 2 ** (len(config.block_out_channels) - 1)
    scaled = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    slices = scaled.to(pipeline.vae.dtype).split(max(1, DECODED_PIXELS // side**2))
    pixels = torch.cat([pipeline.vae.decode(part, return_dict=False)[0] for part in slices]).float()
    return (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def scaled(images: Tensor, side: int) -> Tensor:
    """Images uint8 [B, H, W, 3] brought to [B, side, side, 3] (Pillow's Lanczos filter); as they are when they have that size."""
    if images.shape[1:3] == (side, side):
        return images
    import numpy as np

    resized = np.stack([fitted(image, side) for image in images.cpu().numpy()])
    return torch.from_numpy(resized).to(images.device)
