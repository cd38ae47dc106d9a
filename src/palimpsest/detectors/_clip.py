"""CLIP as judges use it: its checkpoint, pixels prepared from uint8 images, and embeddings (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.detectors.contract import MissingWeights, check_images

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def folder_of(path: str, revision: str | None, setting: str) -> Path:
    """A folder of weights, or the cached snapshot of a hub id. Never downloads; raises MissingWeights with what to do."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        at = f" --revision {revision}" if revision else ""
        raise MissingWeights(
            f"{setting}: {path!r} is neither a folder nor in the local hub cache. Fetch it with `hf download {path}{at}`, "
            f"or set {setting} to a folder that holds it."
        ) from None


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image into CLIP's input: the shorter side is resized (bicubic), the middle cut out, the channels normalised."""

    size: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> Preprocessing:
        """From a checkpoint's preprocessor_config.json. Raises MissingWeights without one."""
        file = folder / "preprocessor_config.json"
        if not file.is_file():
            raise MissingWeights(f"{file} is missing; a CLIP checkpoint says there how images are prepared")
        given = json.loads(file.read_text(encoding="utf-8"))
        size, crop = given["size"], given["crop_size"]
        return cls(
            size if isinstance(size, int) else size["shortest_edge"],
            crop if isinstance(crop, int) else crop["height"],
            tuple(given["image_mean"]),
            tuple(given["image_std"]),
        )

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 [B, H, W, 3] -> normalised float32 [B, 3, crop, crop], as CLIPImageProcessor makes them with Pillow."""
        import numpy as np
        import torch
        from PIL import Image

        check_images(images)
        height, width = images.shape[1:3]
        short = min(height, width)
        # the other side is cut off, not rounded, as in the processor
        target = (self.size * width // short, self.size * height // short)
        if target != (width, height):
            resized = [Image.fromarray(i).resize(target, Image.Resampling.BICUBIC) for i in images]
            images = np.stack([np.asarray(image) for image in resized])
        top, left = ((side - self.crop) // 2 for side in images.shape[1:3])
        cut = np.ascontiguousarray(images[:, top : top + self.crop, left : left + self.crop])
        pixels = torch.from_numpy(cut).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


@dataclass(eq=False)
class Clip:
    """A CLIP with its preprocessing. tokenizer is None when only images are embedded."""

    model: Any
    preprocessing: Preprocessing
    tokenizer: Any = None

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return int(self.model.config.projection_dim)

    def embed_images(self, images: np.ndarray) -> Tensor:
        """Projected image embeddings of uint8 [B, H, W, 3], not normalised: float32 [B, width] on the model's device."""
        import torch

        pixels = self.preprocessing.pixels(images).to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            return projected(self.model.get_image_features(pixel_values=pixels)).float()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit text embeddings float32 [n, width]. Longer texts are cut at the tokenizer's length, as in training."""
        import torch

        batch = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            return torch.nn.functional.normalize(
                projected(self.model.get_text_features(**batch)).float(), dim=-1
            )


def projected(features: Any) -> Tensor:
    """The projected embedding that `get_*_features` gives: a tensor, or since transformers 5 the pooled output."""
    return getattr(features, "pooler_output", features)


def load(
    path: str,
    revision: str | None,
    setting: str,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    texts: bool = True,
) -> Clip:
    """Load a CLIP checkpoint (safetensors only). texts: whether texts will be embedded too."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    folder = folder_of(path, revision, setting)
    model = CLIPModel.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True) if texts else None
    return Clip(model.to(device).eval().requires_grad_(False), Preprocessing.read(folder), tokenizer)
