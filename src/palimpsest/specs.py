"""The settings blocks that single steps read. They stand apart from the whole of an experiment's settings (params.py), so that a change
there does not count as a change of every step's code.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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
    """How images are sampled; every field is part of a cell's identity, except `batch`, which changes no image."""

    name: SamplerName
    steps: Annotated[int, Field(ge=1, le=1000)]
    guidance: Annotated[float, Field(ge=0)]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
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


class Detector(Strict):
    """A judge. kind: the module of palimpsest.detectors; path: its weights (folder or hub id)."""

    kind: Name
    path: str
    revision: str | None = None
    batch: Annotated[int, Field(ge=1)] = 64
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class Masks(BaseModel):
    """How masked training images come about. kind: the module of palimpsest.segmenters; all other keys are that module's settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Name


class Rule(Strict):
    """How scores become verdicts. joined: one question per theme; any_keyword: the largest of the keyword questions.
    texts: theme -> another question text than its joined keywords (the benchmark's code asks just one word for its first theme)."""

    kind: Literal["joined", "any_keyword"]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    texts: dict[str, str] = {}


class Statistics(Strict):
    """Resamples of the cluster bootstrap, its confidence level, and the least number of unsafe base images for a rank."""

    resamples: Annotated[int, Field(ge=100)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    least_base_unsafe: Annotated[int, Field(ge=1)] = 30
