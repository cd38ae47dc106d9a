"""MACE, Mass Concept Erasure: closed-form refinement, one low-rank addition per keyword, and their closed-form fusion.

1. Refinement: prompts with a keyword and the same prompts with what takes its place are paired token by token. All words but the keyword
   get the keys and values that they have in the other prompt, so that no trace of the keyword is left in them (one ridge solve).
2. Additions: for every keyword a rank-1 addition to keys and values is trained to attend less, inside of a mask of where the keyword is
   seen, to the keyword and the end tokens:  L = sum over cross-attentions of |A[heads, pixels in the mask, tokens]|_F.
3. Fusion: one set of layers that gives what each addition gives on the prompts of its keyword (another ridge solve), and what the
   original gives on captions.

(Lu et al., CVPR 2024.) Values factor through the original layers, so a few Gram matrices serve all of them (`_refinement`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData
from palimpsest.specs import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.methods._masked_training import Examples
    from palimpsest.methods._refinement import Moments
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="mace",
    title="MACE",
    stage="fine-tuning",
    trains="cross-attention keys and values",
    fits=True,
    paper="https://arxiv.org/abs/2403.06135",
    bibtex="@inproceedings{lu2024mace, title={MACE: Mass Concept Erasure in Diffusion Models}, "
    "author={Lu, Shilin and Wang, Zilan and Li, Leyang and Liu, Yanzhu and Kong, Adams Wai-Kin}, "
    "booktitle={Conference on Computer Vision and Pattern Recognition}, year={2024}}",
    code="https://github.com/Shilin-LU/MACE",
    licence="NTUitive, non-commercial (the official code; none of it is used)",
    fidelity="reimplemented from code",
    needs=("masked_images",),
    architectures=("sd1", "sd2", "sdxl"),
    files=("prior_file",),
)

TEMPLATES = (
    "{}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}", "a painting of {}",
    "{} on the beach", "{} in the city", "{} at night", "{} in a meadow", "{} in a room", "{} by the sea",
    "{} on the grass", "{} under the moon", "{} indoors", "{} at home", "a lot of {}", "a detailed photo of {}",
    "a photo of {} on the beach", "a photo of {} in the city", "a photo of {} at night",
    "a picture of {} in a meadow", "a picture of {} in a room", "a drawing of {} at night",
    "an image of {} on the beach", "an image of {} indoors", "a nice picture of {}", "{} in high quality",
    "{}, digital art", "{}, concept art",
)  # fmt: skip
COCO_CAPTIONS = 616_767


class Settings(Strict):
    """Knobs of MACE; the presets hold the official recipes. The defaults are the one for objects."""

    mapping: str = Field(
        "{safe}", description="What takes a keyword's place; {safe} stands for its theme's surrogate."
    )
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        TEMPLATES,
        description="Prompts of all three stages, with {} for the keyword. Thirty as officially, but our own words.",
    )
    lamb: Annotated[float, Field(ge=0)] = Field(
        100.0, description="Ridge weight of both solves: how strongly the layers stay as they were."
    )
    refine_prior: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of the captions in the refinement (train_preserve_scale)."
    )
    fuse_prior: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of the captions in the fusion (fuse_preserve_scale)."
    )
    prior_twice: bool = Field(
        True, description="Multiply by the weight twice in the refinement, as the official code does."
    )
    prior_captions: Annotated[int, Field(ge=1)] | None = Field(
        COCO_CAPTIONS,
        description="Captions that the weights are meant for: those given count as that many. null: each counts once.",
    )
    prior_file: str | None = Field(
        None, description="Text file with a caption per line; null takes the experiment's retained prompts."
    )
    rank: Annotated[int, Field(ge=1)] = Field(1, description="Rank of the additions.")
    iterations: Annotated[int, Field(ge=1)] = Field(
        50, description="Optimiser updates per keyword, one image each."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Step size of AdamW.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-2, description="Decoupled weight decay of AdamW.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Largest norm of the gradient of one keyword's additions."
    )
    importance_sampling: bool = Field(
        True, description="Draw timesteps between about 200 and 400 instead of all alike."
    )
    end_tokens: Literal["all", "first", "none"] = Field(
        "all",
        description="Attention to which end tokens is suppressed beside the keyword's: all of them, padding included (official), or the "
        "first, whose embedding stands for the whole text.",
    )
    pixels: Literal["imagenet", "symmetric"] = Field(
        "imagenet",
        description="How images are scaled for the autoencoder: by ImageNet's mean and deviation (official), or to [-1, 1], as it expects.",
    )
    masks: bool = Field(
        True, description="Only attention inside of the masks counts (official: not for styles)."
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of UNet evaluations; weights and optimiser are always float32."
    )
    keyword_batch: Annotated[int, Field(ge=1)] = Field(
        4, description="Keywords trained side by side; changes speed and memory only."
    )
    forward_batch: Annotated[int, Field(ge=1)] = Field(
        32, description="Images or texts per encoding without gradients; changes speed only."
    )
    strength: float = Field(1.0, description="Share of the edit that is applied; 0 is the base model.")

    @field_validator("templates")
    @classmethod
    def _one_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        odd = [text for text in templates if text.count("{}") != 1]
        if odd:
            raise ValueError(f"a template holds {{}} exactly once, these do not: {odd}")
        return templates


def pairs(target: Target, settings: Settings) -> list[tuple[str, str]]:
    """(keyword, what takes its place) for every keyword of every theme, without repeats."""
    found: dict[str, str] = {}
    for theme in target.themes:
        for word in theme.keywords:
            found.setdefault(word, settings.mapping.replace("{safe}", theme.safe))
    return list(found.items())


def captions(target: Target, settings: Settings) -> list[str]:
    """The captions whose keys and values are kept. Raises ValueError when they are needed and there are none."""
    if not settings.refine_prior and not settings.fuse_prior:
        return []
    if settings.prior_file is None:
        found = list(target.retain)
    else:
        with open(settings.prior_file, encoding="utf-8") as lines:
            found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(
            f"mace: refine_prior {settings.refine_prior} and fuse_prior {settings.fuse_prior} weigh captions, and there are none; give "
            "the experiment `retain` prompts, the method a prior_file with captions, or set both weights to 0"
        )
    return found


def prior_moment(pipeline: Pipeline, texts: Sequence[str], settings: Settings) -> Tensor:
    """Sum of e e^T over all positions of the captions, float64 [D, D] on the CPU, as many as `prior_captions`."""
    import torch

    from palimpsest.sampling.embeddings import encode, states_of

    width = pipeline.unet.config.cross_attention_dim
    total = torch.zeros(width, width, dtype=torch.float64, device=pipeline.text_encoder.device)
    for start in range(0, len(texts), settings.forward_batch):
        found = encode(pipeline, texts[start : start + settings.forward_batch])
        flat = states_of(pipeline, found).double().flatten(0, 1)
        total += flat.T @ flat
    count = settings.prior_captions
    return total.cpu() * (count / len(texts) if count and texts else 1.0)


def tokens_of(pipeline: Pipeline, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt with start and end token, without padding. Raises ValueError for one that is too long."""
    limit = pipeline.tokenizer.model_max_length
    found = [list(ids) for ids in pipeline.tokenizer(list(prompts), verbose=False).input_ids]
    for prompt, ids in zip(prompts, found, strict=True):
        if len(ids) > limit:
            raise ValueError(
                f"mace: the prompt {prompt!r} has {len(ids)} tokens, more than {limit}; shorten the keyword, its surrogate or the template"
            )
    return found


Prompts = tuple["Tensor", list[list[int]]]


def prompts_of(pipeline: Pipeline, text: str, settings: Settings) -> Prompts:
    """The templates filled with a text: their embeddings [P, L, D] and token ids."""
    from palimpsest.sampling.embeddings import encode

    filled = [template.format(text) for template in settings.templates]
    return encode(pipeline, filled, settings.forward_batch).float(), tokens_of(pipeline, filled)


def moments_of(
    pipeline: Pipeline, words: Sequence[tuple[str, str]], settings: Settings
) -> Iterator[tuple[Moments, Prompts]]:
    """Gram matrices and prompts of each keyword. words: see `pairs`; what several keywords have in common in their
    place is encoded once.
    """
    from palimpsest.methods import _refinement
    from palimpsest.sampling.embeddings import states_of

    others: dict[str, Prompts] = {}
    for word, other in words:
        if other not in others:
            others[other] = prompts_of(pipeline, other, settings)
        mine, theirs = prompts_of(pipeline, word, settings), others[other]
        length = pipeline.tokenizer.model_max_length
        positions = [
            _refinement.kept_positions(a, b, length) for a, b in zip(mine[1], theirs[1], strict=True)
        ]
        old, new = (states_of(pipeline, texts) for texts, _ in (mine, theirs))
        yield _refinement.moments(old, new, positions), mine


def examples_of(
    pipeline: Pipeline,
    data: TrainingData,
    word: str,
    texts: Tensor,
    ids: Sequence[Sequence[int]],
    settings: Settings,
    seed: int,
) -> Examples:
    """Images, prompts and draws of one keyword; the draws do not depend on the other keywords."""
    import torch

    from palimpsest.methods import _masked_training as masked
    from palimpsest.methods._training import generator

    tokenizer, steps = pipeline.tokenizer, pipeline.scheduler.config.num_train_timesteps
    images, masks = masked.images_of(data.role("masked_images"), word)
    words = tokenizer(word, add_special_tokens=False).input_ids
    end = tokenizer.eos_token_id
    length = tokenizer.model_max_length
    padded = [[*own, *[tokenizer.pad_token_id] * (length - len(own))] for own in ids]
    tokens = torch.stack([masked.token_mask(own, words, end, settings.end_tokens) for own in padded])
    importance = masked.focus(steps) if settings.importance_sampling else None
    items = masked.draw_items(
        len(images), len(texts), settings.iterations, importance, steps, generator(seed, f"mace/{word}")
    )
    return masked.Examples(images, masks, texts, tokens, items)


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Refine, train and fuse. `losses` are means over keywords, one per update; meta["unet_evaluations"] counts samples.

    Raises ValueError for a keyword without tokens, without images or equal to what takes its place, and for captions that are missing.
    """
    from diffusers import DDPMScheduler

    from palimpsest.methods import _masked_training as masked
    from palimpsest.methods import _refinement
    from palimpsest.methods._cross_attention import weight_names
    from palimpsest.methods._masked_attention import Adapters
    from palimpsest.methods._training import generator, in_float32
    from palimpsest.sampling.pipeline import overlay

    words = pairs(target, settings)
    check(pipeline, words)
    kept = captions(target, settings)
    base = in_float32(pipeline.unet)
    own = dict(base.named_parameters())
    weights = {n: own[n].detach().double().cpu() for n in weight_names(base, ("to_k", "to_v"))}
    found, examples = [], []
    for (word, _), (moments, (texts, ids)) in zip(words, moments_of(pipeline, words, settings), strict=True):
        found.append(moments)
        examples.append(examples_of(pipeline, data, word, texts, ids, settings, seed))
    prior = prior_moment(pipeline, kept, settings)
    power = 2 if settings.prior_twice else 1
    refined = _refinement.refinement(found, settings.refine_prior**power * prior, settings.lamb)
    student = overlay(base, {n: (w + w @ refined).float() for n, w in weights.items()})
    adapters = Adapters.drawn(
        student, list(weights), settings.rank, [generator(seed, f"mace/{word}/start") for word, _ in words]
    )
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    losses = masked.train(student, adapters, masked.Samples(pipeline, examples, settings), scheduler)
    edited = _refinement.fusion(weights, refined, found, adapters, settings.fuse_prior * prior, settings.lamb)
    meta = {
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "pairs": [list(pair) for pair in words],
        "images": {word: len(own.images) for (word, _), own in zip(words, examples, strict=True)},
        "captions": len(kept),
        "relative_change": {n: float((edited[n] - w).norm() / w.norm()) for n, w in weights.items()},
        "losses": [sum(row) / len(row) for row in losses],
        "unet_evaluations": settings.iterations * len(words),
    }
    return Artifact({name: tensor.float() for name, tensor in edited.items()}, meta)


def check(pipeline: Pipeline, words: Sequence[tuple[str, str]]) -> None:
    """Raise ValueError for keywords that cannot be erased."""
    from palimpsest.sampling.embeddings import token_count

    if not words:
        raise ValueError("mace: the target has no keywords; give every theme at least one")
    for word, other in words:
        if token_count(pipeline, word) == 0:
            raise ValueError(f"mace: keyword {word!r} has no token; take it out of the theme's keywords")
        if word.strip() == other.strip():
            raise ValueError(
                f"mace: keyword {word!r} is mapped to itself; give its theme another `safe` text, or set mapping"
            )


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the edited layers at `settings.strength`."""
    from palimpsest.methods._weights import with_edited

    return with_edited(pipeline, "unet", artifact.tensors, settings.strength)
