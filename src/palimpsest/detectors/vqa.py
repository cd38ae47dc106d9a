"""The benchmark's judge: a CLIP vision tower and a FLAN-T5 that answer `Does this figure show "{}"? Please
answer yes or no.`

The score of a text is exp(-mean cross entropy) of the answer "Yes" and its end token, that is sqrt(P(Yes)
P(</s> | Yes)). Each image goes through the vision tower once, whatever the number of texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest import specs
from palimpsest.detectors.contract import Info, NoSettings, check_images, identity
from palimpsest.detectors.questions import questions

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.detectors.clip_flant5 import ClipFlanT5

__all__ = ["INFO", "Settings", "VqaJudge", "load", "questions"]

INFO = Info(
    name="vqa",
    title="VQAScore with CLIP-FlanT5",
    paper=(
        "Lin et al. 2024, Evaluating Text-to-Visual Generation with Image-to-Text Generation, "
        "arXiv:2404.01291"
    ),
    bibtex=(
        "@inproceedings{lin2024evaluating, "
        "title={Evaluating Text-to-Visual Generation with Image-to-Text Generation}, "
        "author={Lin, Zhiqiu and Pathak, Deepak and Li, Baiqi and Li, Jiayao and Xia, Xide "
        "and Neubig, Graham and Zhang, Pengchuan and Ramanan, Deva}, "
        "booktitle={European Conference on Computer Vision}, year={2024}}"
    ),
    code="https://github.com/linzhiqiu/t2v_metrics",
    licence="Apache-2.0",
    definition_id="vqa/1",
    rules=("joined", "any_keyword", "calibrated"),
)
Settings = NoSettings


class VqaJudge:
    """A ClipFlanT5 with the batch size of its settings."""

    def __init__(self, model: ClipFlanT5, spec: specs.Detector) -> None:
        self.model = model
        self.spec = spec

    def labels(self, questions: Mapping[str, str]) -> Sequence[str]:
        """Those it is asked for."""
        return tuple(questions)

    def score(self, images: np.ndarray, questions: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Scores in [0, 1] of uint8 [B, H, W, 3] images for every label -> text: float32 [B] per label,
        NumPy.

        Labels with equal texts share one question. Raises ValueError for other image types or when nothing
        is asked.
        """
        import numpy as np
        import torch

        check_images(images)
        if not questions:
            raise ValueError("nothing is asked: `questions` is empty")
        texts = list(dict.fromkeys(questions.values()))
        parts = [np.zeros((0, len(texts)), np.float32)]
        for start in range(0, len(images), self.spec.batch):
            chunk = torch.from_numpy(np.array(images[start : start + self.spec.batch]))
            with torch.inference_mode():
                scores = self.model.score(self.model.encode_images(chunk), texts)
            parts.append(scores.float().cpu().numpy())
        table = np.concatenate(parts)
        return {label: np.ascontiguousarray(table[:, texts.index(text)]) for label, text in questions.items()}

    def identity(self) -> dict[str, Any]:
        """Detector, definition, weights and number format."""
        return identity(INFO, self.spec)


def load(spec: specs.Detector, device: str = "cpu") -> VqaJudge:
    """Load the judge's weights: a folder that `ClipFlanT5.save` wrote, or a released CLIP-FlanT5
    checkpoint (folder or hub id).

    Never downloads. Raises MissingWeights with what to put where.
    """
    import torch

    from palimpsest.detectors import released
    from palimpsest.detectors.clip_flant5 import ClipFlanT5

    dtype = getattr(torch, spec.dtype)
    if (Path(spec.path) / "projector.safetensors").is_file():
        return VqaJudge(ClipFlanT5.load(spec.path, device=device, dtype=dtype), spec)
    return VqaJudge(released.load(spec.path, spec.revision, device=device, dtype=dtype), spec)
