"""Data cleaning: another checkpoint, trained on data from which the themes were filtered, in place of the experiment's.

Nothing is aimed at a theme, so there is one variant. The checkpoint brings all its parts (Stable Diffusion 2.1 against 1.4: another text
encoder, v-prediction, its own resolution), or only a UNet that fits the experiment's other parts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData
from palimpsest.specs import Model, Strict

if TYPE_CHECKING:
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="cleaned",
    title="Cleaned data",
    stage="data filtering",
    trains="another checkpoint, from nothing, elsewhere",
    fits=False,
    paper="https://github.com/Stability-AI/stablediffusion",
    bibtex="@misc{stability2022stablediffusion21, title={Stable Diffusion 2.1}, author={{Stability AI}}, "
    "howpublished={\\url{https://github.com/Stability-AI/stablediffusion}}, year={2022}}",
    code="https://github.com/Stability-AI/stablediffusion",
    licence="MIT (code), CreativeML Open RAIL++-M (weights)",
    fidelity="external",
    architectures=("sd1", "sd2", "sdxl"),
    scope="fixed",
    files=("checkpoint",),
)


class Settings(Strict):
    """Which checkpoint takes the place of the experiment's."""

    checkpoint: str = Field(
        description="A diffusers folder or a hub id. Nothing is downloaded; a hub id is looked up in the local cache."
    )
    checkpoint_revision: str | None = Field(None, description="Revision of a hub id.")
    parts: Literal["all", "unet"] = Field(
        "all",
        description="all: every part is the checkpoint's. unet: only its UNet, between the experiment's other parts.",
    )
    architecture: Literal["sd1", "sd2", "sdxl"] = Field(
        "sd1", description="Layout of the checkpoint when parts is all."
    )
    resolution: Annotated[int, Field(ge=16, multiple_of=8)] | None = Field(
        None,
        description="Side of the images it makes, which are then scaled to the experiment's; null: the experiment's own.",
    )

    @model_validator(mode="after")
    def _a_unet_alone_has_no_size(self) -> Settings:
        if self.parts == "unet" and self.resolution is not None:
            raise ValueError(
                "resolution: a UNet alone makes the experiment's size; leave it out, or set parts: all"
            )
        return self


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Nothing to fit: the checkpoint was trained elsewhere."""
    return Artifact(meta={"unet_evaluations": 0, "losses": []})


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the checkpoint's parts and the hooks it had; weights in the dtype and on the device of its UNet.

    Raises MissingModel when the checkpoint is not there, ValueError for a lone UNet of another shape or kind of prediction.
    """
    from palimpsest.sampling.load import checkpoint_folder, load_pipeline, load_unet

    dtype = str(pipeline.dtype).removeprefix("torch.")
    where: dict[str, Any] = {"dtype": dtype, "device": pipeline.device, "setting": "checkpoint"}
    if settings.parts == "unet":
        unet = load_unet(settings.checkpoint, settings.checkpoint_revision, **where)
        _check_shape(unet, pipeline.unet, settings.checkpoint)
        folder = checkpoint_folder(settings.checkpoint, settings.checkpoint_revision, "checkpoint")
        _check_prediction(folder, pipeline.scheduler.config.prediction_type)
        if pipeline.text_encoder_2 is not None:
            unet.reduction = pipeline.unet.reduction
        return replace(pipeline, unet=unet)
    model = Model(
        path=settings.checkpoint,
        revision=settings.checkpoint_revision,
        architecture=settings.architecture,
        resolution=settings.resolution or 512,
    )
    return replace(load_pipeline(model, **where), hooks=pipeline.hooks, resolution=settings.resolution)


def _check_prediction(folder: Path, wanted: str) -> None:
    """Raises ValueError when the checkpoint's own scheduler says that its UNet predicts something else than the experiment's."""
    config = folder / "scheduler" / "scheduler_config.json"
    if not config.is_file():
        return
    given = json.loads(config.read_text(encoding="utf-8")).get("prediction_type", "epsilon")
    if given != wanted:
        raise ValueError(
            f"checkpoint: the UNet of {folder} predicts {given!r}, the experiment's scheduler takes {wanted!r}. Set parts: all to take the "
            "checkpoint's own scheduler"
        )


def _check_shape(unet: Any, base: Any, checkpoint: str) -> None:
    """A UNet works with another checkpoint's text encoder and autoencoder when these widths agree, which says nothing about quality."""
    wrong = [
        f"{name} is {given}, the experiment's model has {wanted}"
        for name in (
            "in_channels",
            "out_channels",
            "cross_attention_dim",
            "projection_class_embeddings_input_dim",
        )
        if (given := unet.config[name]) != (wanted := base.config[name])
    ]
    if wrong:
        raise ValueError(
            f"checkpoint: the UNet of {checkpoint} does not fit the experiment's text encoder and autoencoder: {'; '.join(wrong)}. "
            "Set parts: all to take every part from it"
        )
