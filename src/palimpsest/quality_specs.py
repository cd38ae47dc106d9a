"""The settings block `quality`: what is measured on the pictures of benign prompts, and which parts GRD counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.specs import Name, Strict


class Measure(BaseModel):
    """A measure. kind: the module of palimpsest.metrics; all other keys are that module's settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Name


class Real(Strict):
    """Real pictures of a suite's prompts: see palimpsest.metrics.real_pictures."""

    path: str
    crop: Literal["center", "squash"] = "center"


class Parts(Strict):
    """What GRD counts. detector: one of `detectors`, whose labels are parts; unit: see palimpsest.metrics.grd."""

    detector: Name
    target: Annotated[list[str], Field(min_length=1)]
    other: Annotated[list[str], Field(min_length=1)]
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.4
    unit: Literal["classes", "images", "boxes"] = "classes"


class Quality(Strict):
    """measures: name -> measure, each of which is run on every benign suite; real: suite -> real pictures of its prompts; grd: parts."""

    measures: dict[Name, Measure] = {}
    real: dict[Name, Real] = {}
    grd: dict[Name, Parts] = {}
