"""RECE, Reliable and Efficient Concept Erasure: UCE, then rounds that look for what still triggers a concept.

With the base layers W0 and the layers W edited so far, each text vector c of a keyword has a vector a that
makes W give what W0 gave for c, as far as it can:

    a = argmin sum_k |W_k a - W0_k c|^2 + lambda |a|^2 = [sum_k W_k^T W_k + lambda I]^-1 [sum_k W_k^T W0_k] c

(sum over all key and value layers). A round derives these vectors, maps them to the guide with UCE's ridge
solve on W, and starts again (Gong et al., ECCV 2024, CharlesGong12/RECE, train.py). As W = W0 M with one
matrix M, only S = sum_k W0_k^T W0_k is needed of the layers: sum W^T W = M^T S M and sum W^T W0 = M^T S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData
from palimpsest.specs import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.methods.uce import Settings as FirstEdit
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="rece",
    title="RECE",
    stage="closed form",
    trains="cross-attention keys and values",
    fits=True,
    paper="https://arxiv.org/abs/2407.12383",
    bibtex="@inproceedings{gong2024reliable, title={Reliable and Efficient Concept Erasure of Text-to-Image "
    "Diffusion Models}, author={Gong, Chao and Chen, Kai and Wei, Zhipeng and Chen, Jingjing and Jiang, "
    "Yu-Gang}, booktitle={European Conference on Computer Vision}, year={2024}}",
    code="https://github.com/CharlesGong12/RECE",
    licence="Apache-2.0",
    fidelity="reimplemented from code",
    architectures=("sd1", "sd2", "sdxl"),
)

Scale = Annotated[float, Field(ge=0)]


class Settings(Strict):
    """Knobs of RECE; the presets hold the values of the official scripts. first_* belong to the UCE edit that
    the rounds start from.
    """

    rounds: Annotated[int, Field(ge=0)] = Field(
        3, description="Rounds of deriving and erasing after the first edit; 0 is UCE alone."
    )
    regularisation: Annotated[float, Field(gt=0)] = Field(
        0.1,
        description="lambda: weight of the derived vectors' own length; larger ones stay shorter and harm less.",
    )
    guide: str = Field(
        " ",
        description="The text every concept is mapped to; {safe} stands for the theme's surrogate.",
    )
    erase_scale: Scale = Field(1.0, description="Weight of the derived vectors in a round.")
    preserve_scale: Scale = Field(0.1, description="Weight of the preserved vectors in a round.")
    lamb: Annotated[float, Field(gt=0)] = Field(
        0.1, description="Ridge weight in a round: how strongly the layers stay as the round found them."
    )
    preserve: str = Field(
        " ", description="Text preserved in the rounds, at all positions (train.py: a space)."
    )
    preserve_per_keyword: bool = Field(
        True,
        description="Preserve that text once per keyword, so its weight grows with them (train.py), or once.",
    )
    first_lamb: Annotated[float, Field(gt=0)] = Field(0.5, description="Ridge weight of the first edit.")
    first_erase_scale: Scale = Field(1.0, description="Weight of the keywords' vectors in the first edit.")
    first_preserve_scale: Scale | None = Field(
        None,
        description="Weight of the preserved vectors in the first edit; null is max(0.1, 1 / number of "
        "preserved texts).",
    )
    preserve_retained: bool = Field(
        False, description="Preserve the experiment's retained prompts too, in the first edit and the rounds."
    )
    strength: float = Field(1.0, description="Share of the edit that is applied; 0 is the base model.")


@dataclass(frozen=True)
class Texts:
    """Text vectors in float64. concepts, guides: [n, D], all positions of all keywords; preserved: [m, D]."""

    concepts: Tensor
    guides: Tensor
    preserved: Tensor


def first_edit(settings: Settings) -> FirstEdit:
    """The UCE edit that the official checkpoints were made with."""
    from palimpsest.methods import uce

    return uce.Settings(
        vectors="tail",
        guide=settings.guide,
        erase_scale=settings.first_erase_scale,
        preserve_scale=settings.first_preserve_scale,
        lamb=settings.first_lamb,
        preserve_empty=True,
        preserve_retained=settings.preserve_retained,
    )


def preserved_texts(target: Target, settings: Settings, keywords: int) -> list[str]:
    """What the rounds preserve, with repeats: a text that stands there twice weighs twice."""
    repeats = keywords if settings.preserve_per_keyword else 1
    return [settings.preserve] * repeats + (list(target.retain) if settings.preserve_retained else [])


def derived(vectors: Tensor, base: Tensor, matrix: Tensor, regularisation: float) -> tuple[Tensor, float]:
    """The vectors a [n, D] that trigger `vectors` [n, D] in the edited layers, and how much of the layers'
    output they miss.

    base: S [D, D]; matrix: M of the edit so far. The second value is sum |W a - W0 c|^2 over sum |W0 c|^2: 0
    when nothing is erased, towards 1 when nothing can be brought back.
    """
    import torch

    from palimpsest.methods import _closed_form as ridge

    # sum W^T W0 and sum W^T W
    mixed = matrix.T @ base
    edited = mixed @ matrix
    gram = torch.linalg.cholesky(edited + regularisation * torch.eye(len(base), dtype=base.dtype))
    found = ridge.divide(vectors @ mixed.T, gram)
    asked = ((vectors @ base) * vectors).sum()
    given = ((found @ edited) * found).sum() - 2 * ((found @ mixed) * vectors).sum()
    return found, float((asked + given) / asked)


def edit_matrices(
    first: Tensor, base: Tensor, texts: Texts, settings: Settings
) -> tuple[Tensor, list[float]]:
    """M [D, D] of all edits together, and what the derived vectors of each round missed.

    first: M of the first edit; base: S [D, D].
    """
    from palimpsest.methods import _closed_form as ridge

    kept = ridge.kept_moments(texts.preserved, settings.lamb, settings.preserve_scale)
    matrix, missed = first, []
    for _ in range(settings.rounds):
        found, miss = derived(texts.concepts, base, matrix, settings.regularisation)
        matrix = matrix @ ridge.edit_matrix(found, texts.guides, kept, settings.erase_scale)
        missed.append(miss)
    return matrix, missed


def solve(
    pipeline: Pipeline, target: Target, settings: Settings, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[float]]:
    """The edited layers in float64 and what each round's vectors missed. weights: name -> [d_out, D]."""
    import torch

    from palimpsest.methods import _closed_form as ridge
    from palimpsest.methods import uce

    first = first_edit(settings)
    words = uce.pairs(target, first)
    kept = preserved_texts(target, settings, len(words))
    known = uce.embeddings(pipeline, [*_flat(words), *kept, *uce.kept_texts(target, first)])
    vectors = uce.collect(pipeline, target, first, known)
    moments = ridge.kept_moments(vectors.preserved, first.lamb, uce.scale_of_preserved(first, target))
    start = ridge.edit_matrix(
        torch.cat(list(vectors.concepts)), torch.cat(list(vectors.guides)), moments, first.erase_scale
    )
    texts = Texts(*(torch.cat([known[t] for t in part]) for part in (*zip(*words, strict=True), kept)))
    matrix, missed = edit_matrices(start, ridge.layer_moments(weights), texts, settings)
    return ridge.edited(weights, matrix), missed


def _flat(words: Sequence[tuple[str, str]]) -> list[str]:
    return [text for pair in words for text in pair]


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Solve for the edited layers. Nothing is random, so `seed` has no effect; no image and no UNet
    evaluation is needed.

    `losses` are what the derived vectors missed, one per round (see `derived`). Raises ValueError for a
    keyword without tokens or one that is its own guide.
    """
    from palimpsest.methods import _closed_form as ridge
    from palimpsest.methods import uce
    from palimpsest.methods._keywords import check_keywords

    words = uce.pairs(target, first_edit(settings))
    check_keywords(pipeline, words, "rece")
    weights = ridge.cross_attention_weights(pipeline.unet)
    edited, missed = solve(pipeline, target, settings, weights)
    meta = {
        "settings": settings.model_dump(),
        "seed": seed,
        "pairs": words,
        "relative_change": ridge.relative_change(edited, weights),
        "losses": missed,
        "unet_evaluations": 0,
    }
    return Artifact({name: tensor.float() for name, tensor in edited.items()}, meta)


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the edited layers at `settings.strength`."""
    from palimpsest.methods._weights import with_edited

    return with_edited(pipeline, "unet", artifact.tensors, settings.strength)
