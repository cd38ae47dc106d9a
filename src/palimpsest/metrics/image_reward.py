"""ImageReward: what people would say of a picture and its prompt, by the released reward model.

About 0.1 for Stable Diffusion v1.4 on captions of photographs; a deviation is 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from palimpsest.metrics.contract import Metric
from palimpsest.metrics.measuring import MissingWeights

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.metrics.measuring import Pictures, Values

METRICS = (
    Metric(
        name="image_reward",
        title="ImageReward",
        direction="higher",
        bounds=(None, None),
        needs="image and prompt",
        definition_id="image_reward/1",
        reference=(
            "Xu et al. 2023, arXiv:2304.05977, ImageReward-v1.0: shorter side to 224 (PIL bicubic), centre crop, prompts cut at 35 tokens"
        ),
    ),
)
FILES = ("path", "tokenizer")
LENGTH = 35
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class Settings(BaseModel):
    """path: a safetensors file from `python -m palimpsest.metrics.convert image_reward`; tokenizer: BERT's, lower case (folder or hub id).
    heads: attention heads where there are not 64 numbers in each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    revision: str | None = None
    tokenizer: str = "google-bert/bert-base-uncased"
    heads: dict[str, int] | None = None
    batch: int = 32


def gives(settings: Settings) -> tuple[str, ...]:
    """The metrics measured per picture."""
    return ("image_reward",)


def feature_sets(settings: Settings) -> dict[str, tuple[str, str]]:
    """No features of sets."""
    return {}


def needs(settings: Settings) -> frozenset[str]:
    """No other pictures."""
    return frozenset()


def load(settings: Settings, device: str = "cpu") -> ImageReward:
    """The reward model in float32. Raises MissingWeights when its weights or its tokenizer are not there."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from palimpsest.metrics._blip_reward import build

    path = Path(settings.path)
    if not path.is_file():
        raise MissingWeights(
            f"there is no {path}. Download ImageReward.pt (zai-org/ImageReward on the hub), then run "
            f"`python -m palimpsest.metrics.convert image_reward ImageReward.pt --out {path}`."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer)
    except OSError as error:
        raise MissingWeights(
            f"the tokenizer {settings.tokenizer!r} cannot be loaded ({error}). Give a folder with BERT's vocab.txt."
        ) from error
    tensors = {name: value.float() for name, value in load_file(path).items()}
    return ImageReward(build(tensors, settings.heads).to(device), tokenizer, settings)


class ImageReward:
    """The reward model with its tokenizer."""

    def __init__(self, network: Any, tokenizer: Any, settings: Settings) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.settings = settings

    def identity(self) -> dict[str, Any]:
        return {"kind": "image_reward", "weights": self.settings.path, "tokenizer": self.settings.tokenizer}

    def measure(self, pictures: Pictures) -> Values:
        """Rewards float64 [n]."""
        import numpy as np
        import torch

        device = next(self.network.parameters()).device
        count, batch = len(pictures.images), self.settings.batch
        found = np.full(count, np.nan)
        for start in range(0, count, batch):
            part = slice(start, min(start + batch, count))
            tokens = self.tokenizer(
                list(pictures.prompts[part]),
                padding="max_length",
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt",
            ).to(device)
            pixels = self.pixels(list(pictures.images[part])).to(device)
            with torch.inference_mode():
                reward = self.network(pixels, tokens["input_ids"], tokens["attention_mask"])
            found[part] = reward.double().cpu().numpy()
        return {"image_reward": found}

    def features(self, pictures: Pictures) -> Values:
        return {}

    def pixels(self, images: list[np.ndarray]) -> Any:
        """uint8 [h, w, 3] -> normalised float32 [n, 3, side, side]: shorter side to the network's, PIL bicubic, then the middle square."""
        import numpy as np
        import torch
        from PIL import Image

        side = int(self.network.vision.config.image_size)
        prepared = []
        for image in images:
            height, width = image.shape[:2]
            scale = side / min(height, width)
            size = (max(side, int(width * scale)), max(side, int(height * scale)))
            picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
            left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
            prepared.append(np.asarray(picture.crop((left, top, left + side, top + side))))
        values = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2).float() / 255
        mean, deviation = (torch.tensor(c).view(1, 3, 1, 1) for c in (PIXEL_MEAN, PIXEL_DEVIATION))
        return (values - mean) / deviation
