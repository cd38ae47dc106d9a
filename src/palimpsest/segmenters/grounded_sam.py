"""Masks by words: Grounding DINO finds boxes for a phrase, SAM turns each box into a mask, and their union is the mask of the picture.

As in the official MACE code, whose detector is the same network and whose segmenter is SAM-HQ, a box counts when the best of its scores
over the phrase's tokens exceeds a threshold, and a picture without any box is masked as a whole. Unlike it, pictures are given to both
networks as these expect them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from palimpsest.segmenters.contract import Asked, Info, Masked, Picture
from palimpsest.specs import Strict

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

INFO = Info(
    name="grounded_sam",
    title="Grounding DINO and SAM",
    bibtex=(
        "@inproceedings{liu2024grounding, title={Grounding {DINO}: Marrying {DINO} with Grounded Pre-Training "
        "for Open-Set Object Detection}, author={Liu, Shilong and Zeng, Zhaoyang and Ren, Tianhe and Li, Feng "
        "and Zhang, Hao and Yang, Jie and Jiang, Qing and Li, Chunyuan and Yang, Jianwei and Su, Hang and Zhu, "
        "Jun and Zhang, Lei}, booktitle={European Conference on Computer Vision}, year={2024}}",
        "@inproceedings{kirillov2023segment, title={Segment Anything}, author={Kirillov, Alexander and Mintun, "
        "Eric and Ravi, Nikhila and Mao, Hanzi and Rolland, Chloe and Gustafson, Laura and Xiao, Tete and "
        "Whitehead, Spencer and Berg, Alexander C. and Lo, Wan-Yen and Doll{\\'a}r, Piotr and Girshick, Ross}, "
        "booktitle={International Conference on Computer Vision}, year={2023}}",
    ),
    code="https://github.com/IDEA-Research/Grounded-Segment-Anything",
    licence="Apache-2.0",
    reads="target_images",
    files=("detector", "segmenter"),
)


class Settings(Strict):
    """Checkpoints in the formats of transformers (folder or hub id), threshold and phrases."""

    detector: str = Field(description="Grounding DINO.")
    detector_revision: str | None = Field(None, description="Commit of a hub id.")
    segmenter: str = Field(description="SAM.")
    segmenter_revision: str | None = Field(None, description="Commit of a hub id.")
    box_threshold: Annotated[float, Field(ge=0, le=1)] = Field(0.3, description="Least score of a box.")
    phrases: dict[str, str] = Field(
        {}, description="Keyword -> what is looked for; a keyword without a phrase is looked for itself."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Number format of both networks."
    )


def problems(settings: Settings, wanted: Sequence[Asked], root: Path) -> list[str]:
    """Phrases for words that are no keywords, and phrases without words."""
    keywords = [word for asked in wanted for word in asked.keywords]
    unknown = [word for word in settings.phrases if word not in keywords]
    found = [f"phrases: {unknown} are no keywords; the experiment has {keywords}"] if unknown else []
    found += [
        f"phrases: {word!r} has an empty phrase"
        for word, text in settings.phrases.items()
        if not text.strip()
    ]
    return found


class MissingWeights(FileNotFoundError):
    """Weights that are not on this machine; the message says what belongs where."""


def weights_folder(path: str, revision: str | None, setting: str) -> str:
    """The local folder of a path or of a hub id in the cache; never downloads. Raises MissingWeights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(path).is_dir():
        return path
    try:
        return snapshot_download(path, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        at = f" --revision {revision}" if revision else ""
        raise MissingWeights(
            f"masks.{setting}: {path!r} is neither a folder nor in the hub cache. Fetch it with `hf download {path}{at}` on a machine "
            f"with network access, or set masks.{setting} to a folder that holds it."
        ) from error


@dataclass
class Networks:
    """Detector and segmenter with their processors, on one device."""

    settings: Settings
    detector: Any
    detector_inputs: Any
    segmenter: Any
    segmenter_inputs: Any

    @classmethod
    def load(cls, settings: Settings) -> Networks:
        """Raises MissingWeights when a checkpoint is not there."""
        import torch
        from transformers import (
            AutoProcessor,
            GroundingDinoForObjectDetection,
            SamModel,
            SamProcessor,
        )

        device = "cuda" if torch.cuda.is_available() else "cpu"
        parts: list[Any] = []
        for name, network, processor in (
            ("detector", GroundingDinoForObjectDetection, AutoProcessor),
            ("segmenter", SamModel, SamProcessor),
        ):
            folder = weights_folder(getattr(settings, name), getattr(settings, f"{name}_revision"), name)
            loaded = network.from_pretrained(
                folder, dtype=getattr(torch, settings.dtype), use_safetensors=True, local_files_only=True
            )
            parts += [loaded.to(device).eval(), processor.from_pretrained(folder, local_files_only=True)]
        return cls(settings, *parts)

    def phrase(self, keyword: str) -> str:
        """What the detector is asked for: lower case, ending in a full stop."""
        text = self.settings.phrases.get(keyword, keyword).strip().lower()
        return text if text.endswith(".") else f"{text}."

    def boxes(self, image: np.ndarray, keyword: str) -> Tensor:
        """Boxes [n, 4] as x0, y0, x1, y1 in pixels of the picture; n may be 0."""
        import torch
        from PIL import Image

        inputs = self.detector_inputs(
            images=Image.fromarray(image), text=self.phrase(keyword), return_tensors="pt"
        ).to(self.detector.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.detector.dtype)
        with torch.inference_mode():
            found = self.detector(**inputs)
        scores = found.logits[0].float().sigmoid().amax(-1)
        centres, sizes = found.pred_boxes[0].float()[scores > self.settings.box_threshold].split(2, dim=-1)
        height, width = image.shape[:2]
        return torch.cat([centres - sizes / 2, centres + sizes / 2], -1).cpu() * torch.tensor(
            [width, height, width, height]
        )

    def mask(self, image: np.ndarray, boxes: Tensor) -> np.ndarray:
        """The union of the masks of all boxes, bool [H, W]."""
        import torch
        from PIL import Image

        inputs = self.segmenter_inputs(
            Image.fromarray(image), input_boxes=[boxes.tolist()], return_tensors="pt"
        )
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        device, dtype = self.segmenter.device, self.segmenter.dtype
        with torch.inference_mode():
            found = self.segmenter(
                pixel_values=inputs["pixel_values"].to(device, dtype),
                input_boxes=inputs["input_boxes"].to(device, dtype),
                multimask_output=False,
            )
        (masks,) = self.segmenter_inputs.post_process_masks(found.pred_masks.float().cpu(), *sizes)
        return masks.flatten(0, 1).any(0).numpy()


def masked(settings: Settings, asked: Asked, pictures: Sequence[Picture]) -> Iterator[Masked]:
    """Every picture with its mask, one by one, so that a mask does not depend on other pictures. Raises MissingWeights."""
    import numpy as np

    networks = Networks.load(settings)
    for picture in pictures:
        boxes = networks.boxes(picture.image, picture.keyword)
        found = len(boxes) > 0
        mask = networks.mask(picture.image, boxes) if found else np.ones(picture.image.shape[:2], bool)
        yield Masked(picture, mask, found)
