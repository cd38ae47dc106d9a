"""CLIP-FlanT5 (Lin et al. 2024, arXiv:2404.01291): a T5 that answers a question about CLIP's image patches.

The encoder reads ``chunk1 </s> [patches] chunk2 </s>``: the wrapped question is cut at the image's place and each part
keeps its own end token, as in the released code (github.com/linzhiqiu/t2v_metrics up to version 3.0). The score of a
question is ``exp(-mean cross-entropy)`` of the answer's tokens ``[Yes, </s>]``, i.e. the geometric mean
``sqrt(P(Yes) P(</s> | Yes))``; it is not normalised against "No".
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CONFIG, PROJECTOR, VISION, LANGUAGE = "config.json", "projector.safetensors", "vision", "language"
IMAGE = "<image>"


@dataclass(frozen=True)
class Settings:
    """What the weights were trained with. ``wrapper`` holds the places ``<image>`` and ``{question}``.

    Images are padded to a square with ``int(mean * 255)``, resized to ``image_size`` (bicubic) and normalised.
    ``hidden_state`` is the layer of the vision tower whose patch tokens are read; its class token is left out.
    """

    wrapper: str
    template: str = 'Does this figure show "{}"? Please answer yes or no.'
    answer: str = "Yes"
    image_size: int = 336
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    pad: bool = True
    hidden_state: int = -2

    def __post_init__(self) -> None:
        if self.wrapper.count(IMAGE) != 1 or self.wrapper.count("{question}") != 1:
            raise ValueError(f"wrapper must hold {IMAGE} and {{question}} once each, got {self.wrapper!r}")
        if self.template.count("{}") != 1:
            raise ValueError(f"template must hold {{}} once, got {self.template!r}")

    def chunks(self, text: str) -> tuple[str, str]:
        """The texts before and after the image for one bare question text."""
        before, after = self.wrapper.replace("{question}", self.template.replace("{}", text)).split(IMAGE)
        return before, after


def projector(vision_width: int, text_width: int) -> nn.Sequential:
    """LLaVA's ``mlp2x_gelu``: Linear, GELU, Linear from the vision tower's width to T5's."""
    return nn.Sequential(nn.Linear(vision_width, text_width), nn.GELU(), nn.Linear(text_width, text_width))


def pixels_of(images: torch.Tensor, settings: Settings) -> torch.Tensor:
    """uint8 ``[B, H, W, 3]`` or ``[B, 3, H, W]`` -> normalised float32 ``[B, 3, S, S]``."""
    if images.dtype != torch.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[-1]):
        raise ValueError(
            f"images must be uint8 [B, H, W, 3] or [B, 3, H, W], got {images.dtype} {tuple(images.shape)}"
        )
    if images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    pixels, side = images.float(), settings.image_size
    height, width = pixels.shape[-2:]
    if settings.pad and height != width:
        longest = max(height, width)
        top, left = (longest - height) // 2, (longest - width) // 2
        fill = torch.tensor([float(int(value * 255)) for value in settings.mean], device=pixels.device)
        square = fill.view(1, 3, 1, 1).repeat(len(pixels), 1, longest, longest)
        square[:, :, top : top + height, left : left + width] = pixels
        pixels = square
    if min(pixels.shape[-2:]) != side:
        height, width = pixels.shape[-2:]
        size = (round(side * height / min(height, width)), round(side * width / min(height, width)))
        pixels = (
            functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
        )
    top, left = (pixels.shape[-2] - side) // 2, (pixels.shape[-1] - side) // 2
    pixels = pixels[:, :, top : top + side, left : left + side] / 255
    mean, std = (
        torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (settings.mean, settings.std)
    )
    return (pixels - mean) / std


class ClipFlanT5(nn.Module):
    """The judge. Call ``encode_images`` once per image batch and ``score`` with as many questions as wanted."""

    def __init__(
        self, vision: Any, project: nn.Sequential, language: Any, tokenizer: Any, settings: Settings
    ) -> None:
        super().__init__()
        self.vision, self.project, self.language = vision, project, language
        self.tokenizer, self.settings = tokenizer, settings
        fuse_activation(language)
        self._answer = torch.tensor(tokenizer(settings.answer)["input_ids"])
        self._parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ClipFlanT5:
        """Load a folder written by :meth:`save`. Raises ``FileNotFoundError`` naming the missing part."""
        from safetensors.torch import load_file
        from transformers import AutoTokenizer, CLIPVisionModel, T5ForConditionalGeneration

        folder = Path(path)
        for part in (CONFIG, PROJECTOR, VISION, LANGUAGE):
            if not (folder / part).exists():
                raise FileNotFoundError(f"{folder / part} is missing; a judge folder holds {CONFIG}, {VISION}/, "
                                        f"{PROJECTOR} and {LANGUAGE}/ (see models/micro/README.md)")  # fmt: skip
        settings = read_settings(folder / CONFIG)
        vision = CLIPVisionModel.from_pretrained(folder / VISION, dtype=dtype)
        language = T5ForConditionalGeneration.from_pretrained(folder / LANGUAGE, dtype=dtype)
        project = projector(vision.config.hidden_size, language.config.d_model)
        project.load_state_dict(load_file(folder / PROJECTOR))
        tokenizer = AutoTokenizer.from_pretrained(folder / LANGUAGE)
        judge = cls(vision, project.to(dtype), language, tokenizer, settings)
        return judge.to(device).eval().requires_grad_(False)

    def save(self, path: str | Path) -> None:
        """Write config.json, vision/, projector.safetensors and language/ (T5 and tokenizer)."""
        from safetensors.torch import save_file

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.vision.save_pretrained(folder / VISION, safe_serialization=True)
        self.language.save_pretrained(folder / LANGUAGE, safe_serialization=True)
        self.tokenizer.save_pretrained(folder / LANGUAGE)
        state = {name: value.detach().cpu().contiguous() for name, value in self.project.state_dict().items()}
        save_file(state, folder / PROJECTOR, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(asdict(self.settings), indent=2) + "\n", encoding="utf-8")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.project.parameters()).device

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels ``[B, 3, S, S]`` -> patch features at T5's width ``[B, P, D]`` (differentiable)."""
        pixels = pixels.to(self.device, next(self.project.parameters()).dtype)
        states = self.vision(pixel_values=pixels, output_hidden_states=True).hidden_states
        return self.project(states[self.settings.hidden_state][:, 1:])

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 ``[B, H, W, 3]`` or ``[B, 3, H, W]`` -> features ``[B, P, D]`` for :meth:`score`."""
        return self.patches(pixels_of(images.to(self.device), self.settings))

    def _tokens(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        if text not in self._parts:
            before, after = self.settings.chunks(text)
            self._parts[text] = tuple(
                torch.tensor(self.tokenizer(part)["input_ids"]) for part in (before, after)
            )  # type: ignore[assignment]
        return self._parts[text]

    def answer_logits(
        self, features: torch.Tensor, texts: list[str], answers: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Float32 logits of the answer's positions, ``[B, answer length, vocabulary]``; row i is asked ``texts[i]``.

        ``answers`` are the token ids fed back to the decoder, ``[B, answer length]`` (default: "Yes" in every row).
        """
        embed = self.language.get_input_embeddings()
        parts = [self._tokens(text) for text in texts]
        longest = max(len(before) + len(after) for before, after in parts) + features.shape[1]
        states = features.new_zeros(len(texts), longest, features.shape[2])
        mask = torch.zeros(len(texts), longest, dtype=torch.long, device=features.device)
        for row, (before, after) in enumerate(parts):
            pieces = [embed(before.to(features.device)), features[row], embed(after.to(features.device))]
            joined = torch.cat([piece.to(states.dtype) for piece in pieces])
            states[row, : len(joined)], mask[row, : len(joined)] = joined, 1
        answers = self._answer.expand(len(texts), -1) if answers is None else answers
        start = torch.full((len(texts), 1), self.language.config.decoder_start_token_id)
        shifted = torch.cat([start, answers[:, :-1].cpu()], dim=1).to(features.device)
        # without padding there is nothing to mask, and attention then need not copy a mask per row and head
        padded = None if bool(mask.all()) else mask
        output = self.language(
            inputs_embeds=states, attention_mask=padded, decoder_input_ids=shifted, use_cache=False
        )
        return output.logits.float()

    @torch.no_grad()
    def score(self, features: torch.Tensor, questions: list[str], rows: int = 64) -> torch.Tensor:
        """Scores in [0, 1], float32 ``[B, Q]``, of bare question texts (they are put into the template here).

        ``rows`` images go through T5 at once, all with the same question: nothing is padded, so a score depends on its own
        image and question only. Few rows are faster on a CPU, whose caches then hold the activations.
        """
        if not questions:
            raise ValueError("score needs at least one question text, e.g. ['gears']")
        scores = torch.zeros(len(features), len(questions))
        target = self._answer.to(features.device)
        for column, question in enumerate(questions):
            for start in range(0, len(features), rows):
                part = features[start : start + rows]
                logits = self.answer_logits(part, [question] * len(part))
                losses = functional.cross_entropy(
                    logits.transpose(1, 2), target.expand(len(part), -1), reduction="none"
                ).mean(dim=1)
                scores[start : start + len(part), column] = (-losses).exp().cpu()
        return scores


def fuse_activation(language: Any) -> None:
    """Let T5's gated layers use torch's own tanh-GELU: the same function as transformers' chain of eight elementwise
    operations, in one pass over memory."""
    for module in language.modules():
        if type(getattr(module, "act", None)).__name__ == "NewGELUActivation":
            module.act = nn.GELU(approximate="tanh")


def read_settings(path: Path) -> Settings:
    """Settings from ``config.json``; unknown keys are an error, so that a newer folder is not misread."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    known = {field.name for field in fields(Settings)}
    if unknown := sorted(set(raw) - known):
        raise ValueError(f"{path}: unknown keys {unknown}; known keys: {sorted(known)}")
    for name in ("mean", "std"):
        if name in raw:
            raw[name] = tuple(raw[name])
    return Settings(**raw)
