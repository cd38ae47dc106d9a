"""The settings blocks that single steps read. They stand apart from the whole of an experiment's settings (params.py), so that a change
there does not count as a change of every step's code.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
SamplerName = Literal["dpmsolver++", "ddim", "pndm", "lms", "euler"]
PromptFormat = Literal["i2p", "authors", "one_column", "coco", "ring_a_bell", "direct"]


class Strict(BaseModel):
    """A settings block: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Strict):
    """The checkpoint under test: a diffusers folder, a hub id with a revision, or a single safetensors file."""

    path: str
    revision: str | None = None
    architecture: Literal["sd1", "sd2", "sdxl"] = "sd1"
    resolution: Annotated[int, Field(ge=16, multiple_of=8)]


class Sampler(Strict):
    """How images are sampled; every field is part of a cell's identity, except `batch`, which changes no image.
    compile: torch.compile for the blocks of the UNet, on a GPU; it rounds otherwise, so it is part of the identity too."""

    name: SamplerName
    steps: Annotated[int, Field(ge=1, le=1000)]
    guidance: Annotated[float, Field(ge=0)]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    batch: Annotated[int, Field(ge=1)] = 32


class Source(Strict):
    """One file of prompts. rows: the expected number of rows; repetitions: seeds per prompt for formats without seeds."""

    format: PromptFormat
    path: str
    rows: Annotated[int, Field(ge=1)] | None = None
    repetitions: Annotated[int, Field(ge=1)] = 1
    toxicity: str | None = None


class Suite(Strict):
    """A prompt suite. kind: "unsafe" suites are judged for erasure, "benign" ones for what erasing broke.
    theme: set for suites that belong to one theme only (adversarial prompts); all_themes: whether variants that erase all themes are
    run on it too; variants: patterns of the variants that are run on it ("*.detailed"), where that is not all of them."""

    kind: Literal["unsafe", "benign"]
    theme: Name | None = None
    all_themes: bool = True
    variants: list[str] = []
    sources: Annotated[dict[str, Source], Field(min_length=1)]
    shard: Annotated[int, Field(ge=1)] = 2000


class Detector(BaseModel):
    """A judge. kind: the module of palimpsest.detectors; path: its weights (folder, file or hub id; empty: those that come with the
    module); all other keys are that module's settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Name
    path: str = ""
    revision: str | None = None
    batch: Annotated[int, Field(ge=1)] = 64
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class Masks(BaseModel):
    """How masked training images come about. kind: the module of palimpsest.segmenters; all other keys are that module's settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Name


Share = Annotated[float, Field(ge=0, le=1)]


class Rule(Strict):
    """How scores become verdicts.

    joined: one question per theme; any_keyword: the largest of the keyword questions; argmax: the largest of all themes and "safe";
    labels: the largest of given labels; calibrated: one score per theme and a threshold of its own for each.
    texts: theme -> another question text than its joined keywords (the benchmark's code asks just one word for its first theme).
    thresholds: theme -> threshold, where it is not `threshold`. labels: theme, or "any", -> labels of a detector that is asked nothing.
    detectors: which ones it is for; empty: all whose scores it can read (calibrated: the judge)."""

    kind: Literal["joined", "any_keyword", "argmax", "labels", "calibrated"]
    threshold: Share = 0.5
    texts: dict[str, str] = {}
    thresholds: dict[str, Share] = {}
    labels: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    detectors: list[str] = []

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Rule:
        if self.texts and self.kind not in ("joined", "calibrated"):
            raise ValueError(
                f"texts {dict(self.texts)} have no meaning with kind {self.kind}; use kind joined or drop texts"
            )
        if bool(self.labels) != (self.kind == "labels") and self.kind != "calibrated":
            raise ValueError(
                f"kind {self.kind} with labels {self.labels}: kind labels needs them, calibrated may have them, no other does"
            )
        if self.kind == "calibrated" and not self.thresholds:
            raise ValueError(
                "kind calibrated needs thresholds per theme; `python -m palimpsest.detectors.calibration` finds them"
            )
        if self.kind in ("argmax", "labels") and not self.detectors:
            raise ValueError(f"kind {self.kind} needs `detectors:`, the names of those it is for")
        return self


class Statistics(Strict):
    """Resamples of the cluster bootstrap, its confidence level, and the least number of unsafe base images for a rank."""

    resamples: Annotated[int, Field(ge=100)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    least_base_unsafe: Annotated[int, Field(ge=1)] = 30
