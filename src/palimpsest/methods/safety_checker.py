"""The safety checker that Stable Diffusion ships with: a filter on finished images, which withholds what it flags.

CLIP's vision tower and projection embed the image; its cosine with each of 17 fixed concept embeddings is compared with a threshold per
concept. Three special-care embeddings lower all thresholds by 0.01 when one of them is near. A flagged image is not handed out. Nothing is
aimed at a theme: the concepts and thresholds lie in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData
from palimpsest.sampling.pipeline import Hook
from palimpsest.specs import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.methods._safety_checker import Checker
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="safety_checker",
    title="Safety checker",
    stage="post-hoc filter",
    trains="nothing",
    fits=False,
    paper="https://arxiv.org/abs/2210.04610",
    bibtex="@article{rando2022redteaming, title={Red-Teaming the Stable Diffusion Safety Filter}, author={Rando, Javier and "
    "Paleka, Daniel and Lindner, David and Heim, Lennart and Tram{\\`e}r, Florian}, "
    "journal={arXiv preprint arXiv:2210.04610}, year={2022}}",
    code="https://github.com/huggingface/diffusers",
    licence="Apache-2.0 (code), CreativeML OpenRAIL-M (weights)",
    fidelity="reimplemented from code",
    architectures=("sd1", "sd2", "sdxl"),
    scope="fixed",
    files=("checker",),
    stored={"checker": ("safety_checker/model.safetensors", "model.safetensors")},
)


class Settings(Strict):
    """Which checker, and how strict it is."""

    checker: str = Field(
        description="A folder or a hub id with weights (safetensors), config.json and preprocessor_config.json, or a whole Stable "
        "Diffusion checkpoint that has the folders safety_checker and feature_extractor. Nothing is downloaded."
    )
    checker_revision: str | None = Field(None, description="Revision of a hub id.")
    adjustment: float = Field(
        0.0,
        description="Added to every cosine before it is compared, as the constant of that name in the official code (0); more flags more.",
    )
    strength: Annotated[float, Field(ge=0)] = Field(
        1.0,
        description="Where the thresholds lie on the line from 1 (strength 0: none is reached) through the checkpoint's own (1) downwards.",
    )


@dataclass(frozen=True, eq=False)
class SafetyFilter(Hook):
    """Withholds images of which a concept is over its threshold; the reason names the concepts and by how much."""

    checker: Checker
    settings: Settings

    def withhold(self, images: Tensor, prompts: Sequence[str]) -> dict[int, str]:
        from palimpsest.methods._safety_checker import excess, moved

        thresholds = moved(self.checker.thresholds, self.settings.strength)
        over = excess(
            *self.checker.cosines(images.cpu().numpy()), thresholds, adjustment=self.settings.adjustment
        )
        return {
            position: ", ".join(
                f"{name} {value:+.3f}"
                for name, value in zip(self.checker.names, row, strict=True)
                if value > 0
            )
            for position, row in enumerate(over)
            if (row > 0).any()
        }


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Nothing to fit: concepts and thresholds come with the checkpoint."""
    return Artifact(meta={"unet_evaluations": 0, "losses": []})


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the filter at its end, which looks at what all other hooks made of the images.

    Raises MissingModel or FileNotFoundError when the checker is not there, ValueError when its weights do not fit.
    """
    if settings.strength == 0.0:
        return pipeline
    from palimpsest.methods._safety_checker import load
    from palimpsest.sampling.load import checkpoint_folder

    folder = checkpoint_folder(
        settings.checker, settings.checker_revision, "checker", *INFO.stored["checker"]
    )
    return pipeline.with_hook(SafetyFilter(load(folder, "checker", pipeline.device), settings))
