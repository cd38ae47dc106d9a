"""CLIPScore: how well a picture fits its prompt, 100 times the cosine of CLIP's two embeddings.

Its scale depends on the CLIP model, so the model is part of the measure's name wherever it is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from palimpsest.metrics.contract import Metric
from palimpsest.metrics.measuring import MissingWeights

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.metrics.measuring import Pictures, Values

METRICS = (
    Metric(
        name="clip_score",
        title="CLIPScore",
        direction="higher",
        bounds=(-100.0, 100.0),
        needs="image and prompt",
        definition_id="clip_score/1",
        reference=(
            "100 cos, as CLIP's logits and torchmetrics have it, not clamped at 0; Hessel et al. 2021, arXiv:2104.08718, multiply by 2.5 "
            "and put 'A photo depicts' before the text"
        ),
    ),
)
FILES = ("path",)


class Settings(BaseModel):
    """path: a CLIP folder or hub id, whose processor prepares pictures. Texts are cut at the model's length."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    revision: str | None = None
    batch: int = 64


def gives(settings: Settings) -> tuple[str, ...]:
    """The metrics measured per picture."""
    return ("clip_score",)


def feature_sets(settings: Settings) -> dict[str, tuple[str, str]]:
    """No features of sets."""
    return {}


def needs(settings: Settings) -> frozenset[str]:
    """No other pictures."""
    return frozenset()


def load(settings: Settings, device: str = "cpu") -> ClipScore:
    """CLIP in float32. Raises MissingWeights when it is neither a folder nor in the hub cache."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    try:
        where: dict[str, Any] = {"revision": settings.revision} if settings.revision else {}
        model = CLIPModel.from_pretrained(settings.path, dtype="float32", use_safetensors=True, **where)
        tokenizer = CLIPTokenizer.from_pretrained(settings.path, **where)
        processor = CLIPImageProcessor.from_pretrained(settings.path, **where)
    except OSError as error:
        raise MissingWeights(
            f"CLIP {settings.path!r} cannot be loaded ({error}). Give a folder that holds it, or run `hf download {settings.path}` "
            "on a machine with network access."
        ) from error
    return ClipScore(model.eval().requires_grad_(False).to(device), tokenizer, processor, settings)


class ClipScore:
    """CLIP with its tokenizer and image processor."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any, settings: Settings) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor
        self.settings = settings

    def identity(self) -> dict[str, Any]:
        return {"kind": "clip_score", "weights": self.settings.path, "revision": self.settings.revision}

    def measure(self, pictures: Pictures) -> Values:
        """100 times the cosine of every picture and its prompt: float64 [n]."""
        import numpy as np
        import torch

        count, batch = len(pictures.images), self.settings.batch
        found = np.full(count, np.nan)
        for start in range(0, count, batch):
            part = slice(start, min(start + batch, count))
            texts = list(pictures.prompts[part])
            with torch.inference_mode():
                cosine = (self.text(texts) * self.image(list(pictures.images[part]))).sum(dim=-1)
            found[part] = 100 * cosine.double().cpu().numpy()
        return {"clip_score": found}

    def features(self, pictures: Pictures) -> Values:
        return {}

    def text(self, texts: list[str]) -> Any:
        """Unit text embeddings [n, d]; equal texts are embedded once."""
        from torch.nn import functional

        different = list(dict.fromkeys(texts))
        tokens = self.tokenizer(
            different,
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.model.device)
        found = self.model.get_text_features(**tokens).pooler_output
        return functional.normalize(found, dim=-1)[[different.index(text) for text in texts]]

    def image(self, images: list[np.ndarray]) -> Any:
        """Unit picture embeddings [n, d]."""
        from torch.nn import functional

        pixels = self.processor(images=images, return_tensors="pt").to(self.model.device)["pixel_values"]
        return functional.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
