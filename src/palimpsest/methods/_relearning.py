"""The image passes of Meta-Unlearning: which images play which part, every draw of an update, and a UNet that
has learned the harmful images again for a while.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from palimpsest.methods._denoising import Batch, Noisy, noisy
from palimpsest.methods._training import Dtype, checked
from palimpsest.methods.contract import ImageSet, Need, Target, TrainingData

if TYPE_CHECKING:
    from palimpsest.sampling.pipeline import Pipeline

Part = Literal["harm", "related", "unrelated"]


class Recipe(Protocol):
    """The settings of Meta-Unlearning that are read here; see there."""

    @property
    def iterations(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def images_per_set(self) -> int: ...
    @property
    def fixed_timesteps(self) -> tuple[int, ...]: ...
    @property
    def gamma1_1(self) -> float: ...
    @property
    def gamma1_2(self) -> float: ...
    @property
    def gamma2_1(self) -> float: ...
    @property
    def gamma2_2(self) -> float: ...
    @property
    def gamma2_3(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def compute(self) -> Dtype: ...
    @property
    def forward_batch(self) -> int: ...


@dataclass(frozen=True)
class Material:
    """The images. harm, safe: encoded; their first `harm_half` and `safe_half` images and the rest are two sets:
    harm for relearning and for its test, safe related and unrelated.
    """

    harm: Noisy
    safe: Noisy
    harm_half: int
    safe_half: int

    def of(self, part: Part) -> Noisy:
        """The images that a part's rows belong to."""
        return self.harm if part == "harm" else self.safe


@dataclass(frozen=True)
class Term:
    """One batch whose loss enters the gradient with a weight."""

    part: Part
    weight: float
    batch: Batch


@dataclass(frozen=True)
class Round:
    """The image passes of one update: at the weights as they are, of relearning, and at the relearned weights."""

    before: tuple[Term, ...]
    relearning: tuple[Batch, ...]
    after: tuple[Term, ...]

    @property
    def samples(self) -> int:
        """Forward passes of single samples."""
        batches = [*self.relearning, *(term.batch for term in (*self.before, *self.after))]
        return sum(len(batch.rows) for batch in batches)


def _in_turns(data: TrainingData, role: Need, target: Target, most: int) -> tuple[np.ndarray, list[str]]:
    """The first `most` images of a role and their prompts, themes taking turns. Raises ValueError for sets that
    do not fit the target or hold fewer than two images in all.
    """
    names = [theme.name for theme in target.themes]
    found: dict[str, ImageSet] = {images.theme: images for images in data.role(role)}
    if set(found) != set(names):
        raise ValueError(
            f"{role} of {sorted(found)} were given, the target has {sorted(names)}; give one set per theme"
        )
    turns = sorted(
        (row, place) for place, name in enumerate(names) for row in range(len(found[name].images))
    )[:most]
    if len(turns) < 2:
        raise ValueError(
            f"{len(turns)} {role} were given; two sets are made of them, so at least 2 are needed"
        )
    chosen = [(found[names[place]], row) for row, place in turns]
    return np.stack([images.images[row] for images, row in chosen]), [
        images.prompts[row] for images, row in chosen
    ]


def material(pipeline: Pipeline, target: Target, data: TrainingData, recipe: Recipe) -> Material:
    """Encode what an experiment's image sets offer: halves of at most `images_per_set` images each."""
    parts = [
        _in_turns(data, role, target, 2 * recipe.images_per_set) for role in ("target_images", "safe_images")
    ]
    harm, safe = (noisy(pipeline, images, prompts, recipe.forward_batch) for images, prompts in parts)
    return Material(harm, safe, len(harm) // 2, len(safe) // 2)


def draw_rounds(found: Material, recipe: Recipe, generator: torch.Generator) -> list[Round]:
    """Draw for all updates, in the official order of passes. A pass of weight zero is drawn but left out."""

    def batches(first: int, end: int, told: int | None, shuffled: bool) -> list[Batch]:
        count = end - first
        rows = torch.randperm(count, generator=generator) if shuffled else torch.arange(count)
        timesteps = torch.randint(found.harm.timesteps, (count,), generator=generator)
        seeds = torch.randint(2**62, (count,), generator=generator)
        timesteps = timesteps if told is None else torch.full_like(timesteps, told)
        split = [values.split(recipe.batch_size) for values in (rows + first, timesteps, seeds)]
        return [Batch(*batch) for batch in zip(*split, strict=True)]

    def terms(part: Part, weight: float, first: int, end: int) -> list[Term]:
        told: Sequence[int | None] = recipe.fixed_timesteps or [None]
        drawn = [batch for t in told for batch in batches(first, end, t, shuffled=False)]
        return [Term(part, weight, batch) for batch in drawn if weight]

    harm, safe = found.harm_half, found.safe_half
    related, unrelated = (0, safe), (safe, len(found.safe))
    rounds = []
    for _ in range(recipe.iterations):
        before = terms("unrelated", recipe.gamma1_1, *unrelated) + terms("related", recipe.gamma1_2, *related)
        relearning = batches(0, harm, None, shuffled=True)
        after = terms("harm", -recipe.gamma2_1, harm, len(found.harm))
        after += terms("related", -recipe.gamma2_2, *related)
        after += terms("unrelated", -recipe.gamma2_3, *unrelated)
        rounds.append(Round(tuple(before), tuple(relearning if after else ()), tuple(after)))
    return rounds


def accumulate(unet: Any, found: Material, terms: Sequence[Term], compute: Dtype, update: int) -> list[float]:
    """Add the weighted gradients of all terms to those that are there; returns the losses without weights."""
    losses = []
    for term in terms:
        loss = found.of(term.part).loss(unet, term.batch, compute)
        losses.append(checked(loss, update))
        (term.weight * loss).backward()
    return losses


@contextmanager
def relearned(
    unet: Any, found: Material, batches: Sequence[Batch], recipe: Recipe, update: int
) -> Iterator[None]:
    """A context in which the UNet has been fine-tuned on the harmful images: all its parameters, one AdamW step
    per batch. Afterwards every parameter is what it was, bit for bit; gradients are kept, and those of the
    parameters that are trained keep adding up inside.
    """
    parameters = list(unet.parameters())
    kept = [(p.detach().clone(), p.grad, p.requires_grad) for p in parameters]
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(True)
    try:
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        for batch in batches:
            loss = found.harm.loss(unet, batch, recipe.compute)
            checked(loss, update)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        for parameter, (_, gradient, wanted) in zip(parameters, kept, strict=True):
            parameter.requires_grad_(wanted)
            parameter.grad = gradient
        yield
    finally:
        with torch.no_grad():
            for parameter, (value, _, wanted) in zip(parameters, kept, strict=True):
                parameter.copy_(value)
                parameter.requires_grad_(wanted)
