"""UCE, Unified Concept Editing: a closed-form edit of the cross-attention keys and values.

Every text vector c of an erased concept is mapped to what the original layer gives for a guide g, in the
ridge sense:

    W = [lamb W0 + s_e sum (W0 g) c^T + s_p sum (W0 p) p^T] [lamb I + s_e sum c c^T + s_p sum p p^T]^-1

(Gandikota et al., WACV 2024, equation 7). Both factors but W0 are the same for all layers, so W = W0 M with
one matrix M for the UNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="uce",
    title="UCE",
    stage="closed form",
    trains="cross-attention keys and values",
    fits=True,
    paper="https://arxiv.org/abs/2308.14761",
    bibtex="@inproceedings{gandikota2024unified, title={Unified Concept Editing in Diffusion Models}, "
    "author={Gandikota, Rohit and Orgad, Hadas and Belinkov, Yonatan and Materzy{\\'n}ska, Joanna "
    "and Bau, David}, "
    "booktitle={Winter Conference on Applications of Computer Vision}, year={2024}}",
    code="https://github.com/rohitgandikota/unified-concept-editing",
    licence="MIT",
    fidelity="reimplemented from code",
    architectures=("sd1", "sd2", "sdxl"),
)


class Settings(BaseModel):
    """Knobs of UCE; the presets hold the values of the two official scripts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vectors: Literal["tail", "last_subject"] = Field(
        "tail",
        description="Which positions of a concept are edited: the last subject token and all after it, end "
        "and padding tokens included (script of 2023), or the last subject token alone (script of 2025).",
    )
    guide: str = Field(
        " ",
        description="The text every concept is mapped to; {safe} stands for the theme's surrogate. An empty "
        "guide has no subject token, so its last subject position is the start token, as in both official "
        "scripts.",
    )
    erase_scale: Annotated[float, Field(ge=0)] = Field(1.0, description="Weight s_e of the erased vectors.")
    preserve_scale: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Weight s_p of the preserved vectors; null is max(0.1, 1 / number of preserved texts) "
        "(script of 2023).",
    )
    lamb: Annotated[float, Field(gt=0)] = Field(
        0.5, description="Ridge weight: how strongly the layers stay as they were."
    )
    preserve_empty: bool = Field(
        True, description="Preserve the empty prompt at all positions (always so in the script of 2023)."
    )
    preserve_retained: bool = Field(False, description="Preserve the experiment's retained prompts too.")
    technique: Literal["replace", "tensor"] = Field(
        "replace",
        description="Target values: the guide's, or the guide's less their component along the concept's.",
    )
    strength: float = Field(1.0, description="Share of the edit that is applied; 0 is the base model.")


@dataclass(frozen=True)
class Vectors:
    """Text vectors in float64. concepts and guides: one pair [n_i, D] per keyword; preserved: [m, D]."""

    concepts: Sequence[Tensor]
    guides: Sequence[Tensor]
    preserved: Tensor


def pairs(target: Target, settings: Settings) -> list[tuple[str, str]]:
    """(keyword, guide) for every keyword of every theme, without repeats."""
    found: dict[str, str] = {}
    for theme in target.themes:
        for word in theme.keywords:
            found.setdefault(word, settings.guide.replace("{safe}", theme.safe))
    return list(found.items())


def last_subject(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Position of the last token before the end token, per text; 0, the start token, for a text without
    tokens.
    """
    limit = tokenizer.model_max_length
    mask = tokenizer(
        list(texts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    ).attention_mask
    return [int(count) - 2 for count in mask.sum(1)]


def kept_texts(target: Target, settings: Settings) -> list[str]:
    """The preserved texts."""
    empty = [""] if settings.preserve_empty else []
    return empty + (list(target.retain) if settings.preserve_retained else [])


def embeddings(pipeline: Pipeline, texts: Sequence[str]) -> dict[str, Tensor]:
    """Text -> hidden states [77, D] in float64 on the CPU, every text encoded once."""
    from palimpsest.sampling.embeddings import encode, states_of

    different = list(dict.fromkeys(texts))
    hidden = states_of(pipeline, encode(pipeline, different))
    return dict(zip(different, hidden.double().cpu(), strict=True))


def collect(
    pipeline: Pipeline, target: Target, settings: Settings, hidden: Mapping[str, Tensor] | None = None
) -> Vectors:
    """The vectors of the keywords, their guides, and the preserved texts.

    hidden: `embeddings` of at least these texts, when the caller has them.
    """
    words, kept = pairs(target, settings), kept_texts(target, settings)
    texts = list(dict.fromkeys([text for pair in words for text in pair] + kept))
    if hidden is None:
        hidden = embeddings(pipeline, texts)
    last = dict(zip(texts, last_subject(pipeline.tokenizer, texts), strict=True))
    concepts, guides = [], []
    for word, guide in words:
        length = 1 if settings.vectors == "last_subject" else len(hidden[word]) - max(last[word], last[guide])
        concepts.append(hidden[word][last[word] : last[word] + length])
        guides.append(hidden[guide][last[guide] : last[guide] + length])
    whole = settings.vectors == "tail"
    preserved = [hidden[text] if whole else hidden[text][last[text]][None] for text in kept]
    return Vectors(concepts, guides, _stacked(preserved, hidden[words[0][0]].shape[-1]))


def _stacked(blocks: Sequence[Tensor], width: int) -> Tensor:
    import torch

    return torch.cat([torch.zeros(0, width, dtype=torch.float64), *blocks])


def scale_of_preserved(settings: Settings, target: Target) -> float:
    """s_p: as set, or max(0.1, 1 / number of preserved texts)."""
    if settings.preserve_scale is not None:
        return settings.preserve_scale
    count = settings.preserve_empty + (len(target.retain) if settings.preserve_retained else 0)
    return max(0.1, 1.0 / max(count, 1))


def closed_form(
    weights: Mapping[str, Tensor], vectors: Vectors, settings: Settings, preserve_scale: float
) -> dict[str, Tensor]:
    """The edited layers in float64. weights: name -> [d_out, D]."""
    import torch

    from palimpsest.methods import _closed_form as ridge

    concepts = torch.cat(list(vectors.concepts))
    kept = ridge.kept_moments(vectors.preserved, settings.lamb, preserve_scale)
    if settings.technique == "replace":
        guides = torch.cat(list(vectors.guides))
        return ridge.edited(weights, ridge.edit_matrix(concepts, guides, kept, settings.erase_scale))
    gram, edited = ridge.factor(kept, concepts, settings.erase_scale), {}
    for name, weight in weights.items():
        old = weight.double()
        numerator = old @ kept + settings.erase_scale * _projected(old, vectors).T @ concepts
        edited[name] = ridge.divide(numerator, gram)
    return edited


def _projected(weight: Tensor, vectors: Vectors) -> Tensor:
    """Guide values less their component along the concept's values, a keyword's positions taken as one long
    vector: [n, d_out].
    """
    import torch

    values = []
    for concept, guide in zip(vectors.concepts, vectors.guides, strict=True):
        direction = concept @ weight.T
        direction = direction / direction.norm()
        value = guide @ weight.T
        values.append(value - (direction * value).sum() * direction)
    return torch.cat(values)


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Solve for the edited layers. Nothing is random, so `seed` has no effect; no image and no UNet
    evaluation is needed.

    Raises ValueError for a keyword without tokens or equal to its guide, and for a UNet without cross-attention.
    """
    from palimpsest.methods import _closed_form as ridge
    from palimpsest.methods._keywords import check_keywords

    check_keywords(pipeline, pairs(target, settings), "uce")
    weights = ridge.cross_attention_weights(pipeline.unet)
    preserve_scale = scale_of_preserved(settings, target)
    vectors = collect(pipeline, target, settings)
    edited = closed_form(weights, vectors, settings, preserve_scale)
    meta = {
        "settings": settings.model_dump(),
        "pairs": pairs(target, settings),
        "vectors": int(sum(len(block) for block in vectors.concepts)),
        "preserved": len(vectors.preserved),
        "preserve_scale": preserve_scale,
        "relative_change": ridge.relative_change(edited, weights),
        "losses": [],
        "unet_evaluations": 0,
    }
    return Artifact({name: tensor.float() for name, tensor in edited.items()}, meta)


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the edited layers at `settings.strength`."""
    from palimpsest.methods._weights import with_edited

    return with_edited(pipeline, "unet", artifact.tensors, settings.strength)
