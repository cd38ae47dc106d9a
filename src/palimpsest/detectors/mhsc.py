"""MHSC, the multi-headed safety classifier: one small head per category on CLIP's image embedding.

The released code prepares images with the random crops of training, so that its scores differ from run to run. Here images are prepared
as for validation, unless the setting `crops` asks for one crop of that kind, drawn from a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from palimpsest import specs
from palimpsest.detectors.contract import Info, check_images, identity, no_questions

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.detectors._clip import Clip

INFO = Info(
    name="mhsc",
    title="Multi-headed safety classifier",
    paper="Qu et al. 2023, Unsafe Diffusion: On the Generation of Unsafe Images and Hateful Memes From Text-To-Image Models, "
    "arXiv:2305.13873",
    bibtex="""@inproceedings{qu2023unsafe,
  title={Unsafe Diffusion: On the Generation of Unsafe Images and Hateful Memes From Text-To-Image Models},
  author={Qu, Yiting and Shen, Xinyue and He, Xinlei and Backes, Michael and Zannettou, Savvas and Zhang, Yang},
  booktitle={ACM SIGSAC Conference on Computer and Communications Security},
  year={2023}
}""",
    code="https://github.com/YitingQu/unsafe-diffusion",
    licence="MIT",
    definition_id="mhsc/1",
    files=("clip",),
)
questions = no_questions


class Settings(specs.Strict):
    """The network whose embeddings the heads read, and how images are prepared."""

    clip: str = Field(description="The CLIP that the heads were trained on: a folder or a hub id.")
    clip_revision: str | None = Field(None, description="Revision of a hub id.")
    crops: bool = Field(
        False,
        description="Whether every image is cut at random first, as by the released inference code.",
    )
    crop_seed: int = Field(0, description="Seed of the crops; a crop hangs on this and on the image alone.")


class HeadsJudge:
    """A CLIP's vision tower and its heads."""

    def __init__(
        self, clip: Clip, heads: Mapping[str, Any], spec: specs.Detector, settings: Settings
    ) -> None:
        self.clip, self.heads, self.spec, self.settings = clip, heads, spec, settings

    def labels(self, questions: Mapping[str, str]) -> Sequence[str]:
        """The categories."""
        return tuple(self.heads)

    def score(self, images: np.ndarray, questions: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Probability of every category for uint8 [B, H, W, 3] images: float32 [B]. Each category is told by itself.

        Embeddings are not normalised, as in training. Raises ValueError for other image types or questions.
        """
        import numpy as np
        import torch

        check_images(images)
        if questions:
            raise ValueError(
                f"mhsc is asked nothing, got {sorted(questions)}; its heads have their categories"
            )
        parts: dict[str, list[np.ndarray]] = {name: [np.zeros(0, np.float32)] for name in self.heads}
        for start in range(0, len(images), self.spec.batch):
            seen = self._embedded(images[start : start + self.spec.batch])
            with torch.inference_mode():
                for name, head in self.heads.items():
                    parts[name].append(head(seen).sigmoid()[:, 0].cpu().numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}

    def _embedded(self, images: np.ndarray) -> Any:
        import numpy as np
        import torch

        if not self.settings.crops:
            return self.clip.embed_images(images)
        cut = [
            self.clip.embed_images(cropped(image, self.settings.crop_seed)[None])
            for image in np.array(images)
        ]
        return torch.cat(cut)

    def identity(self) -> dict[str, Any]:
        """Detector, definition, weights of heads and CLIP, number format, preparation."""
        return identity(INFO, self.spec, heads=list(self.heads), **self.settings.model_dump())


def cropped(image: np.ndarray, seed: int) -> np.ndarray:
    """A random part of an image uint8 [H, W, 3], 90 to 100 % of its area, sides between 3:4 and 4:3, stretched to a square.

    That is the training transform of open_clip (torchvision's RandomResizedCrop).
    """
    import hashlib
    import math

    import numpy as np
    from PIL import Image

    own = int.from_bytes(hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()[:8], "big")
    rng = np.random.default_rng([seed, own])
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.9, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
            break
    else:  # too long for any of them: its middle
        wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        top, left = (height - high) // 2, (width - wide) // 2
    part, side = Image.fromarray(image[top : top + high, left : left + wide]), min(height, width)
    return np.asarray(part.resize((side, side), Image.Resampling.BICUBIC))


def load(spec: specs.Detector, device: str = "cpu") -> HeadsJudge:
    """Heads (a folder of <category>.safetensors) and their CLIP. Raises MissingWeights, ValueError for heads of another width."""
    from palimpsest.detectors import _clip, _heads

    settings = Settings.model_validate(spec.model_extra or {})
    clip = _clip.load(
        settings.clip, settings.clip_revision, "detectors.<name>.clip", device, spec.dtype, texts=False
    )
    folder = _clip.folder_of(spec.path, spec.revision, "detectors.<name>.path")
    heads = _heads.load(Path(folder), clip.width, "detectors.<name>.path")
    return HeadsJudge(clip, {name: head.to(device) for name, head in heads.items()}, spec, settings)
