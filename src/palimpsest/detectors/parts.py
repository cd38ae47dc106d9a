"""Parts of an object, counted per image: for the micro world what NudeNet is for photographs.

A small network finds robots' parts that show without the casing (target) and all others. Its weights name the classes, so the same module
serves any object with parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from palimpsest import specs
from palimpsest.detectors.contract import Info, check_images, identity, no_questions

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.detectors._parts_network import PartsNetwork

INFO = Info(
    name="parts",
    title="Parts of an object",
    paper="Zhou et al. 2019, Objects as Points, arXiv:1904.07850 (peaks of one map per class)",
    bibtex="""@article{zhou2019objects,
  title={Objects as Points},
  author={Zhou, Xingyi and Wang, Dequan and Kr{\\"a}henb{\\"u}hl, Philipp},
  journal={arXiv preprint arXiv:1904.07850},
  year={2019}
}""",
    code="https://github.com/xingyizhou/CenterNet",
    licence="that of this project",
    definition_id="parts/1",
)
questions = no_questions
LEAST = 0.05
"""Peaks below this score are no boxes at all."""


class Settings(specs.Strict):
    """What is counted."""

    counted_above: Annotated[float, Field(ge=LEAST, le=1)] = Field(
        0.4, description="Boxes above this score are counted."
    )


class PartsDetector:
    """A loaded network."""

    def __init__(self, network: PartsNetwork, spec: specs.Detector, settings: Settings) -> None:
        self.network, self.spec, self.settings = network, spec, settings

    @property
    def counted_above(self) -> float:
        return self.settings.counted_above

    def labels(self, questions: Mapping[str, str]) -> Sequence[str]:
        """The classes of the weights."""
        return self.network.shape.labels

    def boxes(self, images: np.ndarray) -> dict[str, list[np.ndarray]]:
        """Scores of the parts found in uint8 [B, H, W, 3] images per class and image, largest first.

        Images are resized to the size of the network's training (bilinear, antialiased).
        """
        import numpy as np
        import torch
        from torch.nn import functional

        from palimpsest.detectors._parts_network import peaks

        check_images(images)
        shape = self.network.shape
        device = next(self.network.parameters()).device
        found: dict[str, list[np.ndarray]] = {label: [] for label in shape.labels}
        for start in range(0, len(images), self.spec.batch):
            chunk = torch.from_numpy(np.array(images[start : start + self.spec.batch])).to(device)
            pixels = chunk.permute(0, 3, 1, 2).float() / 127.5 - 1
            if pixels.shape[-2:] != (shape.side, shape.side):
                pixels = functional.interpolate(
                    pixels, (shape.side, shape.side), mode="bilinear", antialias=True
                )
            with torch.inference_mode():
                for image in peaks(self.network(pixels), LEAST):
                    for label, heights in zip(shape.labels, image, strict=True):
                        found[label].append(heights.cpu().numpy())
        return found

    def score(self, images: np.ndarray, questions: Mapping[str, str]) -> dict[str, np.ndarray]:
        """The largest score of every class, 0 without a box: float32 [B]. Raises ValueError when it is asked something."""
        from palimpsest.detectors.boxes import largest

        if questions:
            raise ValueError(
                f"parts is asked nothing, got {sorted(questions)}; its weights have their classes"
            )
        return largest(self.boxes(images))

    def identity(self) -> dict[str, Any]:
        """Detector, definition, weights, what is counted, and which classes are targets."""
        shape = self.network.shape
        return identity(
            INFO,
            self.spec,
            counted_above=self.counted_above,
            least_score=LEAST,
            target=list(shape.target),
            other=list(shape.other),
        )


def load(spec: specs.Detector, device: str = "cpu") -> PartsDetector:
    """A folder that `palimpsest.world.parts` wrote. Raises MissingWeights without one, ValueError for another number format."""
    from palimpsest.detectors import _parts_network

    if spec.dtype != "float32":
        raise ValueError(f"detectors.<name>.dtype: parts are found in float32, not {spec.dtype}")
    settings = Settings.model_validate(spec.model_extra or {})
    return PartsDetector(_parts_network.load(Path(spec.path)).to(device), spec, settings)
