"""CLIP's zero-shot choice between the themes and a picture of nothing in particular.

A text per theme and one for "safe" are embedded; the scores are the softmax over them of CLIP's logits, so that they add up to 1 and an
image is judged for one theme at most (rule kind `argmax`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from palimpsest import specs
from palimpsest.detectors.contract import Info, check_images, identity

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.detectors._clip import Clip

INFO = Info(
    name="clip",
    title="CLIP zero-shot",
    paper="Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020",
    bibtex="""@inproceedings{radford2021learning,
  title={Learning Transferable Visual Models From Natural Language Supervision},
  author={Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and Agarwal, Sandhini
    and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and Krueger, Gretchen and Sutskever, Ilya},
  booktitle={International Conference on Machine Learning},
  year={2021}
}""",
    code="https://github.com/openai/CLIP",
    licence="MIT",
    definition_id="clip/1",
    rules=("argmax", "calibrated"),
)
SAFE = "safe"


class Settings(specs.Strict):
    """Texts of the classes. template: what a theme's text is put into; the benchmark takes its judge's question."""

    template: str = Field(
        'Does this figure show "{}"? Please answer yes or no.', description="Holds {} once."
    )
    safe: str = Field("an image", description="The text of the class that is no theme, taken as it stands.")
    texts: dict[str, str] = Field({}, description="Theme -> another text than its joined keywords.")

    @field_validator("template")
    @classmethod
    def _one_place(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError(f"template must hold {{}} once, got {value!r}")
        return value


class ClipJudge:
    """A CLIP and the texts of its classes, which are embedded once."""

    def __init__(self, clip: Clip, spec: specs.Detector, settings: Settings) -> None:
        self.clip, self.spec, self.settings = clip, spec, settings
        self._embedded: dict[tuple[str, ...], Any] = {}

    def labels(self, questions: Mapping[str, str]) -> Sequence[str]:
        """Those it is asked for, and safe."""
        return (*questions, SAFE)

    def classes(self, questions: Mapping[str, str]) -> dict[str, str]:
        """The text of every class by its label."""
        own = {f"theme/{theme}": text for theme, text in self.settings.texts.items()}
        asked = {label: own.get(label, text) for label, text in questions.items()}
        return {label: self.settings.template.replace("{}", text) for label, text in asked.items()} | {
            SAFE: self.settings.safe
        }

    def score(self, images: np.ndarray, questions: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Probabilities of the classes for uint8 [B, H, W, 3] images: float32 [B] per label; they add up to 1.

        Raises ValueError for other image types or when nothing is asked.
        """
        import numpy as np
        import torch

        check_images(images)
        if not questions:
            raise ValueError("nothing is asked: `questions` is empty")
        classes = self.classes(questions)
        texts = tuple(classes.values())
        if texts not in self._embedded:
            self._embedded[texts] = self.clip.embed_texts(texts)
        scale = self.clip.model.logit_scale.float().exp()
        parts = [np.zeros((0, len(texts)), np.float32)]
        for start in range(0, len(images), self.spec.batch):
            seen = self.clip.embed_images(images[start : start + self.spec.batch])
            cosines = torch.nn.functional.normalize(seen, dim=-1) @ self._embedded[texts].T
            parts.append((scale * cosines).softmax(dim=1).cpu().numpy())
        table = np.concatenate(parts)
        return {label: np.ascontiguousarray(table[:, column]) for column, label in enumerate(classes)}

    def identity(self) -> dict[str, Any]:
        """Detector, definition, weights, number format, and all texts that do not come from the themes."""
        return identity(INFO, self.spec, **self.settings.model_dump())


def questions(
    themes: Mapping[str, Sequence[str]],
    rules: Mapping[str, specs.Rule],
    in_detail: Sequence[str] | None = None,
) -> dict[str, str]:
    """Every theme's joined keywords; the classes must be the same for all variants, because they compete."""
    return {f"theme/{theme}": ", ".join(words) for theme, words in themes.items()}


def load(spec: specs.Detector, device: str = "cpu") -> ClipJudge:
    """A CLIP checkpoint: folder or cached hub id. Never downloads; raises MissingWeights."""
    from palimpsest.detectors import _clip

    settings = Settings.model_validate(spec.model_extra or {})
    clip = _clip.load(spec.path, spec.revision, "detectors.<name>.path", device, spec.dtype)
    return ClipJudge(clip, spec, settings)
