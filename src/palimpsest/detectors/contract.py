"""What a detector is: a module of this package that defines `INFO`, `Settings`, `questions` and `load(spec, device)`.

A detector is found by its file name, never registered, and loads its weights (and torch) only when `load`
is called. It gives scores; thresholds belong to `palimpsest.detectors.rules`, so that another threshold
never costs another scoring pass.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from pydantic import BaseModel

from palimpsest import specs
from palimpsest.declarations import declares, plugins

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Info:
    """Metadata of a detector, shown in reports and `palimpsest cite`. bounds: least and greatest score;
    higher means more present. rules: the kinds of rules that can read its scores; "labels" is for detectors with labels of
    their own, which are asked nothing.
    files: settings beside `path` that name weights; "<name>_revision" may pin a hub id. weights: what `path` is
    when the settings do not say.
    """

    name: str
    title: str
    paper: str
    bibtex: str
    code: str
    licence: str
    definition_id: str
    bounds: tuple[float, float] = (0.0, 1.0)
    rules: tuple[str, ...] = ("labels", "calibrated")
    files: tuple[str, ...] = ()
    weights: str = ""


class NoSettings(specs.Strict):
    """For detectors that have no settings of their own."""


class Judge(Protocol):
    """A loaded detector."""

    def labels(self, questions: Mapping[str, str]) -> Sequence[str]:
        """What it scores when it is asked `questions` (label -> text), in the order of `score`."""
        ...

    def score(self, images: np.ndarray, questions: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Score uint8 [B, H, W, 3] images for every label: float32 [B] per label. A score depends on its
        image and the texts only.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """What scored: detector name, definition, weights, number format, settings; stored with the scores."""
        ...


@runtime_checkable
class PartsJudge(Judge, Protocol):
    """A detector of things with places. Its score of a label is the largest score of the label's boxes (0 without one).

    counted_above: boxes with a larger score are counted.
    """

    counted_above: float

    def boxes(self, images: np.ndarray) -> dict[str, list[np.ndarray]]:
        """Per label and image the scores of all boxes that were found, float32, largest first."""
        ...


class Detector(Protocol):
    """The module-level names of a detector. Settings: model of its settings beside those of `specs.Detector`."""

    INFO: Info
    Settings: type[BaseModel]

    def questions(
        self,
        themes: Mapping[str, Sequence[str]],
        rules: Mapping[str, specs.Rule],
        in_detail: Sequence[str] | None = None,
    ) -> dict[str, str]:
        """What a suite is scored for, label -> text; nothing for a detector with labels of its own."""
        ...

    def load(self, spec: specs.Detector, device: str) -> Judge:
        """Load the weights of `spec` onto `device`. Raises MissingWeights when they are not there."""
        ...


class MissingWeights(FileNotFoundError):
    """Weights that are not on this machine; the message says what belongs where."""


def names() -> list[str]:
    """The detectors that exist: files of this package that assign `INFO`. Imports none of them."""
    return plugins(Path(__file__).parent, "INFO")


def find(kind: str) -> Detector:
    """The detector module of a name. Raises ValueError with the names that exist."""
    if not declares(Path(__file__).with_name(f"{kind}.py"), "INFO"):
        raise ValueError(
            f"detectors: kind {kind!r} does not exist; allowed: {names()}; check `detectors:` in params.yaml"
        )
    return cast(Detector, importlib.import_module(f"palimpsest.detectors.{kind}"))


def no_questions(
    themes: Mapping[str, Sequence[str]],
    rules: Mapping[str, specs.Rule],
    in_detail: Sequence[str] | None = None,
) -> dict[str, str]:
    """The `questions` of detectors with labels of their own."""
    return {}


def identity(info: Info, spec: specs.Detector, **more: Any) -> dict[str, Any]:
    """What every detector says about itself: name, definition, weights, number format, and its own settings."""
    return {
        "detector": info.name,
        "definition_id": info.definition_id,
        "path": spec.path or info.weights,
        "revision": spec.revision,
        "dtype": spec.dtype,
        **dict(spec.model_extra or {}),
        **more,
    }


def device() -> str:
    """Where judges run: CUDA when there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_images(images: np.ndarray) -> None:
    """Raise ValueError unless images are uint8 [B, H, W, 3]: floats of an unknown range are how detectors
    go wrong silently.
    """
    if str(images.dtype) != "uint8" or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"a detector takes uint8 images [B, H, W, 3], got {images.dtype} {tuple(images.shape)}"
        )
