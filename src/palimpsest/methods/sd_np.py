"""SD-NP, negative prompt: guidance away from the concept instead of away from the empty prompt.

    eps = e(z, c_s) + w (e(z, c_p) - e(z, c_s))

with the concept text c_s, the prompt c_p and the guidance scale w. It costs what plain guidance costs and
changes no weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData
from palimpsest.sampling.pipeline import Conditioning, Hook
from palimpsest.specs import Strict

if TYPE_CHECKING:
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="sd_np",
    title="SD-NP",
    stage="inference guidance",
    trains="nothing",
    fits=False,
    paper="https://arxiv.org/abs/2207.12598",
    bibtex="@article{ho2022classifier, title={Classifier-Free Diffusion Guidance}, author={Ho, Jonathan and Salimans, Tim}, "
    "journal={arXiv preprint arXiv:2207.12598}, year={2022}}",
    code="https://github.com/huggingface/diffusers",
    licence="Apache-2.0",
    fidelity="reimplemented from paper",
    architectures=("sd1", "sd2", "sdxl"),
)


class Settings(Strict):
    """Knobs of SD-NP."""

    strength: Annotated[float, Field(ge=0)] = Field(
        1.0,
        description="Where the negative embedding lies on the line from the empty prompt (0, plain guidance) to the concept text (1, the "
        "method); beyond 1 it is extrapolated.",
    )


@dataclass(frozen=True)
class NegativePrompt(Hook):
    """Moves the unconditional embedding to that of `text`, or part of the way."""

    text: str
    strength: float

    def embed(self, pipeline: Pipeline, conditioning: Conditioning) -> Conditioning:
        import torch

        from palimpsest.sampling.embeddings import encode_cached

        empty = conditioning.branches["uncond"]
        concept = encode_cached(pipeline, [self.text]).to(empty).expand_as(empty)
        moved = concept if self.strength == 1.0 else torch.lerp(empty, concept, self.strength)
        return replace(conditioning, branches={**conditioning.branches, "uncond": moved})


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Nothing to fit."""
    return Artifact(meta={"unet_evaluations": 0, "losses": []})


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the keywords, joined by commas, as negative prompt. Without guidance (scale <= 1) it
    has no effect.
    """
    if settings.strength == 0.0:
        return pipeline
    from palimpsest.sampling.embeddings import warn_when_cut

    warn_when_cut(pipeline, target.text, "sd_np")
    return pipeline.with_hook(NegativePrompt(target.text, settings.strength))
