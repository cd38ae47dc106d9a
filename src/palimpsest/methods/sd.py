"""SD, the unerased checkpoint: what every method is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData
from palimpsest.specs import Strict

if TYPE_CHECKING:
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="sd",
    title="SD",
    stage="none",
    trains="nothing",
    fits=False,
    paper="https://arxiv.org/abs/2112.10752",
    bibtex="@inproceedings{rombach2022high, "
    "title={High-Resolution Image Synthesis with Latent Diffusion Models}, "
    'author={Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and Ommer, Bj{\\"o}rn}, '
    "booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition}, year={2022}}",
    code="https://github.com/CompVis/stable-diffusion",
    licence="MIT (code), CreativeML OpenRAIL-M (weights)",
    fidelity="reimplemented from code",
    architectures=("sd1", "sd2", "sdxl"),
)


class Settings(Strict):
    """The base model has no knobs; the sampler belongs to the experiment."""


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Nothing to fit."""
    return Artifact(meta={"unet_evaluations": 0, "losses": []})


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline as it is."""
    return pipeline
