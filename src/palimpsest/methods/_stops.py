"""How far a training latent is denoised, and which timestep the UNet is told: the rules of the official codes
that train on partly denoised latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from palimpsest.sampling.pipeline import Pipeline
    from palimpsest.specs import Sampler

SAMPLERS: tuple[Literal["ddim", "pndm", "dpmsolver++"], ...] = ("ddim", "pndm", "dpmsolver++")
StopRule = Literal["compvis", "binned", "exact"]


class Recipe(Protocol):
    """The settings that say how training latents are sampled; they have the same names in every method."""

    @property
    def stop_rule(self) -> StopRule: ...
    @property
    def scheduler(self) -> Literal["checkpoint", "ddim", "pndm", "dpmsolver++"]: ...
    @property
    def steps(self) -> int: ...
    @property
    def start_guidance(self) -> float: ...
    @property
    def forward_batch(self) -> int: ...


def schedule(pipeline: Pipeline, recipe: Recipe) -> tuple[Any, Sampler]:
    """The scheduler whose settings are used, and how latents are sampled with it.

    Raises ValueError when the checkpoint's own scheduler is one that scales its inputs: training latents are
    not scaled.
    """
    from palimpsest.sampling.schedulers import KINDS
    from palimpsest.specs import Sampler

    scheduler = pipeline.scheduler
    if recipe.stop_rule == "compvis":
        from diffusers.schedulers import DDIMScheduler

        quirk = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
        scheduler = DDIMScheduler.from_config({**scheduler.config, **quirk, "timestep_spacing": "leading"})
    if recipe.scheduler == "checkpoint":
        kind = type(scheduler).__name__
        known = {KINDS[name][0]: name for name in SAMPLERS}
        if kind not in known:
            raise ValueError(
                f"scheduler 'checkpoint' is {kind} here; training latents can be sampled with "
                f"{sorted(known)}: set scheduler to one of {SAMPLERS}"
            )
        name = known[kind]
    else:
        name = recipe.scheduler
    return scheduler, Sampler(
        name=name, steps=recipe.steps, guidance=recipe.start_guidance, batch=recipe.forward_batch
    )


def skipped(recipe: Recipe) -> int:
    """Timesteps skipped at the beginning: the sampler of 2023 leaves out the largest one."""
    return 1 if recipe.stop_rule == "compvis" else 0


def check(stop_rule: StopRule, scheduler: str) -> None:
    """Raises ValueError for a stop rule that the scheduler does not have."""
    if stop_rule != "exact" and scheduler != "ddim":
        raise ValueError(
            f"stop_rule {stop_rule} belongs to the DDIM sampler; scheduler {scheduler!r} must be 'ddim'"
        )


def stops_and_timesteps(
    place: Tensor, recipe: Recipe, timesteps: Tensor, train_timesteps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Steps of partial sampling, and the timestep the UNet is told, each int64 of the shape of `place`.

    place: uniform in 0..steps-1. timesteps: of the schedule; train_timesteps: how many the model was trained
    on (1000). compvis: the official code divides them into `steps` bins, tells one of bin `place`, drawn here,
    and denoises the less the larger `place` is; place 0 never matches in its loop, so it runs like place 1.
    binned (SDD, Meta-Unlearning): `place` steps, and a timestep of the bin that the latent is in; place 0 never
    matches either and runs to the end, so a clean latent is told to be noise.
    """
    import torch

    if recipe.stop_rule == "exact":
        return place, timesteps.cpu()[place]
    binned = recipe.stop_rule == "binned"
    width, tells = train_timesteps / recipe.steps, recipe.steps - 1 - place if binned else place
    low, high = (tells * width).round(), ((tells + 1) * width).round()
    share = torch.rand(place.shape, generator=generator, dtype=torch.float64)
    told = (low + (share * (high - low)).floor()).long()
    if binned:
        return torch.where(place == 0, recipe.steps, place), told
    return recipe.steps - place.clamp(min=1), told
