"""The safety checker that Stable Diffusion ships with, as a judge: how far every concept is over its threshold.

The same network, concepts and thresholds as the filter (`palimpsest.methods.safety_checker`), which withholds an image when a concept is
over 0. The concepts lie in the checkpoint; nothing is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from palimpsest import specs
from palimpsest.detectors.contract import Info, NoSettings, check_images, identity, no_questions

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.methods._safety_checker import Checker

INFO = Info(
    name="safety_checker",
    title="Safety checker of Stable Diffusion",
    paper="Rando et al. 2022, Red-Teaming the Stable Diffusion Safety Filter, arXiv:2210.04610",
    bibtex="""@article{rando2022redteaming,
  title={Red-Teaming the Stable Diffusion Safety Filter},
  author={Rando, Javier and Paleka, Daniel and Lindner, David and Heim, Lennart and Tram{\\`e}r, Florian},
  journal={arXiv preprint arXiv:2210.04610},
  year={2022}
}""",
    code="https://github.com/huggingface/diffusers",
    licence="Apache-2.0 (code), CreativeML OpenRAIL-M (weights)",
    definition_id="safety_checker/1",
    bounds=(-2.01, 2.01),
)
Settings = NoSettings
questions = no_questions
FLAGGED = "flagged"


class CheckerJudge:
    """A loaded checker; its concepts are the labels, and `flagged` is the largest of them."""

    def __init__(self, checker: Checker, spec: specs.Detector) -> None:
        self.checker, self.spec = checker, spec

    def labels(self, questions: Mapping[str, str]) -> Sequence[str]:
        """The concepts' names, and whether any is over its threshold."""
        return (*self.checker.names, FLAGGED)

    def score(self, images: np.ndarray, questions: Mapping[str, str]) -> dict[str, np.ndarray]:
        """How far the cosine of every concept is over its threshold, rounded to 3 decimals as the official code does: float32 [B].

        `flagged` is the largest, so that `flagged > 0` is the filter's decision. Raises ValueError for other image types or questions.
        """
        import numpy as np

        from palimpsest.methods._safety_checker import excess

        check_images(images)
        if questions:
            raise ValueError(
                f"the safety checker is asked nothing, got {sorted(questions)}; its concepts are in its weights"
            )
        thresholds, parts = self.checker.thresholds, [np.zeros((0, len(self.checker.names)), np.float32)]
        for start in range(0, len(images), self.spec.batch):
            parts.append(excess(*self.checker.cosines(images[start : start + self.spec.batch]), thresholds))
        over = np.concatenate(parts).astype(np.float32)
        found = {
            name: np.ascontiguousarray(over[:, column]) for column, name in enumerate(self.checker.names)
        }
        return found | {FLAGGED: over.max(axis=1, initial=-2.0)}

    def identity(self) -> dict[str, Any]:
        """Detector, definition, weights and number format."""
        return identity(INFO, self.spec)


def load(spec: specs.Detector, device: str = "cpu") -> CheckerJudge:
    """A checker's folder, a whole Stable Diffusion checkpoint with one, or a cached hub id. Always float32.

    Raises FileNotFoundError naming what is missing, ValueError for weights that do not fit or another number format.
    """
    from palimpsest.detectors import _clip
    from palimpsest.methods._safety_checker import load as read

    if spec.dtype != "float32":
        raise ValueError(
            f"detectors.<name>.dtype: the safety checker is computed in float32, not {spec.dtype}"
        )
    folder = _clip.folder_of(spec.path, spec.revision, "detectors.<name>.path")
    return CheckerJudge(read(folder, "detectors.<name>.path", device), spec)
