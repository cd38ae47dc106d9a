"""What a detector is: a module of this package that defines `INFO` and `load(spec, device)`.

A detector is found by its file name, never registered, and loads its weights (and torch) only when `load`
is called. It gives scores; thresholds belong to `palimpsest.detectors.rules`, so that another threshold
never costs another scoring pass.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from palimpsest import specs

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Info:
    """Metadata of a detector, shown in reports and `palimpsest cite`. bounds: least and greatest score;
    higher means more present.
    """

    name: str
    title: str
    paper: str
    bibtex: str
    code: str
    licence: str
    definition_id: str
    bounds: tuple[float, float] = (0.0, 1.0)


class Judge(Protocol):
    """A loaded detector."""

    def score(self, images: np.ndarray, questions: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Score uint8 [B, H, W, 3] images for every label -> text; float32 [B] per label. A score depends
        on its image and text only.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """What scored: detector name, definition, weights, number format; stored with the scores."""
        ...


class Detector(Protocol):
    """The module-level names of a detector."""

    INFO: Info

    def load(self, spec: specs.Detector, device: str) -> Judge:
        """Load the weights of `spec` onto `device`. Raises MissingWeights when they are not there."""
        ...


class MissingWeights(FileNotFoundError):
    """Weights that are not on this machine; the message says what belongs where."""


def names() -> list[str]:
    """The detectors that exist: files of this package that assign `INFO`. Imports none of them."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if _assigns_info(path))


def find(kind: str) -> Detector:
    """The detector module of a name. Raises ValueError with the names that exist."""
    if kind not in names():
        raise ValueError(
            f"detectors: kind {kind!r} does not exist; allowed: {names()}; check `detectors:` in params.yaml"
        )
    return cast(Detector, importlib.import_module(f"palimpsest.detectors.{kind}"))


def check_images(images: np.ndarray) -> None:
    """Raise ValueError unless images are uint8 [B, H, W, 3]: floats of an unknown range are how detectors
    go wrong silently.
    """
    if str(images.dtype) != "uint8" or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"a detector takes uint8 images [B, H, W, 3], got {images.dtype} {tuple(images.shape)}"
        )


def _assigns_info(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    return any(isinstance(target, ast.Name) and target.id == "INFO" for target in targets)
