"""SLD, Safe Latent Diffusion: a third branch for the concept steers each step away from it where the prompt
comes near it.

With the predictions eu (empty prompt), ep (prompt) and es (concept text), element by element, at step i:

    mu    = where(ep - es < threshold, min(1, scale |ep - es|), 0)
    gamma = mu (es - eu) + momentum_scale nu
    nu   <- momentum_beta nu + (1 - momentum_beta) gamma             (from the first step on)
    eps   = eu + w (ep - eu - strength gamma [i >= warmup])

The comparison with the threshold is signed, and i counts steps, not timesteps, as in the official code
(Schramowski et al., CVPR 2023, ml-research/safe-latent-diffusion, src/sld/sld_pipeline.py).

Threshold and scale are those of differences of noise. Where the network predicts the velocity v, noise is
sqrt(abar) v + sqrt(1 - abar) x, so a difference of noise is sqrt(abar) times one of v; gamma is found from
those and divided by sqrt(abar) before it is taken from v: the same image as with the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData
from palimpsest.sampling.pipeline import Conditioning, Hook, Step
from palimpsest.specs import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="sld",
    title="SLD",
    stage="inference guidance",
    trains="nothing",
    fits=False,
    paper="https://arxiv.org/abs/2211.05105",
    bibtex="@inproceedings{schramowski2023safe, title={Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models}, "
    'author={Schramowski, Patrick and Brack, Manuel and Deiseroth, Bj{\\"o}rn and Kersting, Kristian}, '
    "booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition}, year={2023}}",
    code="https://github.com/ml-research/safe-latent-diffusion",
    licence="MIT",
    fidelity="reimplemented from code",
    architectures=("sd1", "sd2", "sdxl"),
)


class Settings(Strict):
    """Knobs of SLD; the presets hold the official configurations. The defaults are Medium, the pipeline's
    own.
    """

    warmup: Annotated[int, Field(ge=0)] = Field(
        10,
        description="Steps before the safety term acts, in steps as published (tuned at 50); momentum builds up meanwhile.",
    )
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="Warm-up as a share of the steps, rounded up, in place of warmup: for samplers with few steps.",
    )
    guidance_scale: Annotated[float, Field(ge=0)] = Field(
        1000.0,
        description="s_S: how soon the difference of prompt and concept saturates mu at 1. Below 1 SLD is off, as in the official code.",
    )
    threshold: float = Field(
        0.01, description="lambda: elements with a signed difference below it are steered."
    )
    momentum_scale: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="s_m: weight of the momentum in the safety term."
    )
    momentum_beta: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.4, description="beta_m: how much of the old momentum stays."
    )
    concept_prefix: str = Field(
        "",
        description='Text before the keywords; diffusers\' own default concept starts with "an image showing ".',
    )
    strength: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Factor on the safety term; 0 is the base model."
    )


def safety_term(eu: Tensor, ep: Tensor, es: Tensor, nu: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """gamma of this step and the new momentum nu, both [B, C, h, w]."""
    import torch

    difference = ep - es
    saturated = (difference.abs() * settings.guidance_scale).clamp(max=1.0)
    mu = torch.where(difference >= settings.threshold, torch.zeros_like(saturated), saturated)
    gamma = mu * (es - eu) + settings.momentum_scale * nu
    return gamma, settings.momentum_beta * nu + (1 - settings.momentum_beta) * gamma


def first_active(settings: Settings, count: int) -> int:
    """Index of the first step at which the safety term acts, of `count` steps (PNDM counts one more than its
    name says).
    """
    if settings.warmup_fraction is None:
        return settings.warmup
    return math.ceil(round(settings.warmup_fraction * count, 9))


@dataclass
class SafetyGuidance(Hook):
    """Adds the concept branch and guides with it. momentum belongs to one batch.

    levels: sqrt(abar) of every timestep for a checkpoint that predicts the velocity, else None.
    """

    text: str
    settings: Settings
    levels: Tensor | None = field(default=None, repr=False)
    momentum: Tensor | None = field(default=None, repr=False)

    def embed(self, pipeline: Pipeline, conditioning: Conditioning) -> Conditioning:
        from palimpsest.sampling.embeddings import encode_cached

        like = conditioning.branches["cond"]
        concept = encode_cached(pipeline, [self.text]).to(like).expand_as(like)
        return replace(conditioning, branches={**conditioning.branches, "safety": concept})

    def begin(self, conditioning: Conditioning) -> SafetyGuidance:
        return replace(self, momentum=None)

    def guide(self, step: Step, noise: dict[str, Tensor], latents: Tensor, guidance: float) -> Tensor | None:
        import torch

        eu, ep, es = noise["uncond"], noise["cond"], noise["safety"]
        nu = torch.zeros_like(eu) if self.momentum is None else self.momentum
        # At a level of 0 all differences of noise are 0, and so is what would be divided.
        level = 1.0 if self.levels is None else max(float(self.levels[round(float(step.timestep))]), 1e-6)
        gamma, self.momentum = safety_term(level * eu, level * ep, level * es, nu, self.settings)
        gamma = gamma / level
        if step.index < first_active(self.settings, step.count):
            return None
        return eu + guidance * (ep - eu - self.settings.strength * gamma)


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Nothing to fit."""
    return Artifact(meta={"unet_evaluations": 0, "losses": []})


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the concept branch (half as many UNet evaluations again). Without guidance (scale <=
    1) it has no effect.
    """
    if settings.strength == 0.0 or settings.guidance_scale < 1.0:
        return pipeline
    from palimpsest.sampling.embeddings import warn_when_cut

    text = settings.concept_prefix + target.text
    warn_when_cut(pipeline, text, "sld")
    return pipeline.with_hook(SafetyGuidance(text, settings, _levels(pipeline)))


def _levels(pipeline: Pipeline) -> Tensor | None:
    """sqrt(abar) of every timestep where the UNet predicts the velocity, else None."""
    from palimpsest.methods._relabel import training_scheduler

    scheduler = training_scheduler(pipeline)
    if scheduler.config.prediction_type != "v_prediction":
        return None
    levels: Tensor = scheduler.alphas_cumprod.sqrt()
    return levels
