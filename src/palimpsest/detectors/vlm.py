"""A vision-language model as a judge: the probability that its first word is yes (Qwen-VL, LLaVA and their kin).

One plain forward pass per image and question gives the logits after the prompt. Nothing is generated: the scores of `generate` are
processed logits, in which a repetition penalty punishes the "Yes" and "No" of the question itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from palimpsest import specs
from palimpsest.detectors.contract import Info, check_images, identity
from palimpsest.detectors.questions import questions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["INFO", "Settings", "VlmJudge", "load", "questions"]

INFO = Info(
    name="vlm",
    title="VQAScore with a vision-language model",
    paper="Lin et al. 2024, Evaluating Text-to-Visual Generation with Image-to-Text Generation, arXiv:2404.01291",
    bibtex="""@inproceedings{lin2024evaluating,
  title={Evaluating Text-to-Visual Generation with Image-to-Text Generation},
  author={Lin, Zhiqiu and Pathak, Deepak and Li, Baiqi and Li, Jiayao and Xia, Xide and Neubig, Graham and Zhang, Pengchuan
    and Ramanan, Deva},
  booktitle={European Conference on Computer Vision},
  year={2024}
}""",
    code="https://github.com/linzhiqiu/t2v_metrics",
    licence="Apache-2.0 (code); weights: see the model's card",
    definition_id="vlm/1",
    rules=("joined", "any_keyword", "calibrated"),
)
RAW = "p_yes/"
"""Before the label of a question: the probability of yes among all words, not set against no."""


class Settings(specs.Strict):
    """The question and the size at which a model sees images."""

    template: str = Field(
        'Does this figure show "{}"? Please answer Yes or No.', description="Holds {} once, for the text."
    )
    min_pixels: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Least pixels an image is resized to, for models that take any size (Qwen-VL)."
    )
    max_pixels: Annotated[int, Field(ge=1)] | None = Field(None, description="Most pixels, likewise.")

    @field_validator("template")
    @classmethod
    def _one_place(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError(f"template must hold {{}} once, got {value!r}")
        return value


class VlmJudge:
    """A model with its processor. yes, no: the tokens that count as either answer."""

    def __init__(self, model: Any, processor: Any, spec: specs.Detector, settings: Settings) -> None:
        self.model, self.processor, self.spec, self.settings = model, processor, spec, settings
        self.yes = answers(processor.tokenizer, "yes")
        self.no = answers(processor.tokenizer, "no")
        self._short = "logits_to_keep" in inspect.signature(model.forward).parameters

    def labels(self, questions: Mapping[str, str]) -> Sequence[str]:
        """Those it is asked for, and the same with `p_yes/` before them."""
        return (*questions, *(RAW + label for label in questions))

    def score(self, images: np.ndarray, questions: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Scores in [0, 1] of uint8 [B, H, W, 3] images: P(yes) / (P(yes) + P(no)) per label, and P(yes) per `p_yes/` label, float32 [B].

        Labels with equal texts share a question. Raises ValueError for other image types or when nothing is asked.
        """
        import numpy as np

        check_images(images)
        if not questions:
            raise ValueError("nothing is asked: `questions` is empty")
        texts = list(dict.fromkeys(questions.values()))
        table = np.zeros((2, len(images), len(texts)), np.float32)
        for start in range(0, len(images), self.spec.batch):
            part = slice(start, start + self.spec.batch)
            for column, text in enumerate(texts):
                table[:, part, column] = self._answered(images[part], text).cpu().numpy()
        columns = {label: texts.index(text) for label, text in questions.items()}
        found = {label: np.ascontiguousarray(table[0, :, column]) for label, column in columns.items()}
        return found | {
            RAW + label: np.ascontiguousarray(table[1, :, column]) for label, column in columns.items()
        }

    def prompt(self, text: str) -> str:
        """The whole prompt for a text, image first, in the model's own chat form."""
        question = self.settings.template.replace("{}", text)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _answered(self, images: np.ndarray, text: str) -> Tensor:
        """Both scores, float32 [2, B]. All rows have the same prompt and images of one size, so nothing is padded."""
        import torch
        from PIL import Image

        inputs = self.processor(
            text=[self.prompt(text)] * len(images),
            images=[Image.fromarray(image) for image in images],
            return_tensors="pt",
        ).to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            output = self.model(**inputs, use_cache=False, **({"logits_to_keep": 1} if self._short else {}))
        shares = output.logits[:, -1].float().softmax(dim=-1)
        yes, no = shares[:, self.yes].sum(dim=1), shares[:, self.no].sum(dim=1)
        return torch.stack([yes / (yes + no).clamp(min=torch.finfo(torch.float32).tiny), yes])

    def identity(self) -> dict[str, Any]:
        """Detector, definition, weights, family, number format, question, size, and the tokens of both answers."""
        names = self.processor.tokenizer.convert_ids_to_tokens
        return identity(
            INFO,
            self.spec,
            **self.settings.model_dump(),
            family=self.model.config.model_type,
            yes=names(self.yes),
            no=names(self.no),
        )


def answers(tokenizer: Any, word: str) -> list[int]:
    """Ids of the tokens that are a word alone, in small, title and capital letters, with and without a space before it.

    Raises ValueError when the tokenizer has none of them.
    """
    variants: Iterable[str] = (
        space + form for space in ("", " ") for form in (word, word.title(), word.upper())
    )
    found = [tokenizer.encode(variant, add_special_tokens=False) for variant in variants]
    ids = sorted({ids[0] for ids in found if len(ids) == 1 and ids[0] != tokenizer.unk_token_id})
    if not ids:
        raise ValueError(
            f"this model's tokenizer has no single token for {word!r}; a judge needs one that can answer in a word"
        )
    return ids


def pin_size(image_processor: Any, settings: Settings) -> None:
    """Make a processor keep images within the pixels of the settings. Raises ValueError for one that has a fixed size."""
    given = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    given = {name: value for name, value in given.items() if value is not None}
    size = image_processor.size
    if given and not ("shortest_edge" in size and "longest_edge" in size):
        raise ValueError(
            f"min_pixels and max_pixels mean nothing to this model, whose images have a fixed size ({dict(size)}); leave them out"
        )
    if given:  # both numbers are areas, whatever transformers calls them
        image_processor.size = type(size)(**{**dict(size), **given})


def load(spec: specs.Detector, device: str = "cpu") -> VlmJudge:
    """A checkpoint that transformers knows as image-text-to-text: folder or cached hub id, safetensors only, no code of its own.

    Never downloads; raises MissingWeights.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from palimpsest.detectors import _clip

    settings = Settings.model_validate(spec.model_extra or {})
    folder = _clip.folder_of(spec.path, spec.revision, "detectors.<name>.path")
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=getattr(torch, spec.dtype), use_safetensors=True, local_files_only=True
    )
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    pin_size(processor.image_processor, settings)
    return VlmJudge(model.to(device).eval().requires_grad_(False), processor, spec, settings)
