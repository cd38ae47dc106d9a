"""Training pairs of Ablating Concepts: an image of the anchor, its prompt, and that prompt with the concept
put in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from palimpsest.methods.contract import Target, TrainingData

Insertion = Literal["style", "inappropriate", "object"]


@dataclass(frozen=True)
class Anchor:
    """An image uint8 [H, W, 3], the prompt it was made from, the keywords that take turns in it, and the
    theme's surrogate.
    """

    image: np.ndarray
    prompt: str
    keywords: tuple[str, ...]
    safe: str


@dataclass(frozen=True)
class Place:
    """Where an image resized to `scale` x `scale` goes: pasted at (top, left) on black when smaller, cut out
    there when larger.
    """

    scale: int
    top: int
    left: int


@dataclass(frozen=True)
class Item:
    """One sample of a batch. anchor: index of the image; prompt: the anchor's prompt; concept: the same with
    the keyword in it.
    """

    anchor: int
    prompt: str
    concept: str
    flip: bool
    place: Place | None
    timestep: int
    seed: int


def anchors(target: Target, data: TrainingData) -> list[Anchor]:
    """All safe images, each with the keywords of its own theme. Raises ValueError for a set of a theme that
    is not erased.
    """
    themes = {theme.name: theme for theme in target.themes}
    found = []
    for images in data.role("safe_images"):
        if images.theme not in themes:
            raise ValueError(
                f"safe images of theme {images.theme!r} were given; the target has {sorted(themes)}"
            )
        theme = themes[images.theme]
        pairs = zip(images.images, images.prompts, strict=True)
        found += [Anchor(image, prompt, theme.keywords, theme.safe) for image, prompt in pairs]
    return found


def insert(prompt: str, keyword: str, safe: str, insertion: Insertion, form: int) -> str:
    """The prompt with the concept put in. form: 0, 1 or 2, drawn; "object" has one form, the surrogate
    replaced by the keyword.
    """
    if insertion == "object":
        return prompt.replace(safe, keyword)
    if insertion == "style":  # two of the three forms are the same in the official code
        return f"{prompt}, in the style of {keyword}" if form == 0 else f"in {keyword}'s style, {prompt}"
    return (f"{keyword}, {prompt}", f"in {keyword} style, {prompt}", f"{prompt}, {keyword}")[form]


def _whole(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))


def _chance(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)


def draw_place(size: int, generator: torch.Generator) -> tuple[Place, str]:
    """The official augmentation of a `size` x `size` image: where it goes, and the words that say so at the
    head of the prompt.
    """
    if _chance(0.66, generator):
        scale = _whole(size // 3, size + 1, generator)
    else:
        scale = _whole(int(1.2 * size), int(1.4 * size), generator)
    room = abs(scale - size) + 1
    place = Place(scale, _whole(0, room, generator), _whole(0, room, generator))
    second = _whole(0, 2, generator)
    if scale < 0.6 * size:
        return place, ("a far away ", "very small ")[second]
    return place, ("zoomed in ", "close up ")[second] if scale > size else ""


def placed(image: np.ndarray, item: Item, cell: int) -> tuple[Tensor, Tensor]:
    """Pixels in [-1, 1] as [3, H, W] and the latent cells that count as [1, H / cell, W / cell]."""
    from PIL import Image

    size = image.shape[0]
    mask = torch.ones(1, size // cell, size // cell)
    picture = image[:, ::-1] if item.flip else image
    place = item.place
    if place is None:
        return _pixels(picture), mask
    resized = Image.fromarray(np.ascontiguousarray(picture)).resize(
        (place.scale, place.scale), Image.Resampling.BILINEAR
    )
    pixels = _pixels(np.asarray(resized))
    rows, columns = (
        slice(place.top, place.top + min(place.scale, size)),
        slice(place.left, place.left + min(place.scale, size)),
    )
    if place.scale > size:
        return pixels[:, rows, columns], mask
    canvas = torch.zeros(
        3, size, size
    )  # zero is mid grey here: the official code pastes after scaling to [-1, 1]
    canvas[:, rows, columns] = pixels
    inner = [slice(start // cell + 1, (start + place.scale) // cell - 1) for start in (place.top, place.left)]
    mask = torch.zeros_like(mask)
    mask[:, inner[0], inner[1]] = 1.0
    return canvas, mask


def _pixels(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.astype(np.float32) / 127.5 - 1.0).permute(2, 0, 1)


@dataclass(frozen=True)
class Recipe:
    """How samples are drawn; see the settings of the same names in `ac`."""

    insertion: Insertion
    iterations: int
    batch_size: int
    hflip: bool
    noaug: bool
    prior_preservation: bool
    train_timesteps: int


def draw_items(found: Sequence[Anchor], recipe: Recipe, generator: torch.Generator) -> list[list[Item]]:
    """The batches of all updates; with prior preservation the second half of each are plain anchors.

    The data set is shuffled once (so that themes take turns) and then gone through in a new order every
    epoch. The keyword follows from the place in the shuffled set: it stays the same for an image over all
    epochs.
    """
    mixed = torch.randperm(len(found), generator=generator).tolist()
    needed = recipe.iterations * recipe.batch_size
    stream: list[int] = []
    while len(stream) < needed:
        stream += torch.randperm(len(found), generator=generator).tolist()
    batches = []
    for start in range(0, needed, recipe.batch_size):
        places = stream[start : start + recipe.batch_size]
        batch = [_concept_item(found, mixed[place], place, recipe, generator) for place in places]
        if recipe.prior_preservation:
            batch += [_plain_item(found, place, recipe, generator) for place in places]
        batches.append(batch)
    return batches


def _common(recipe: Recipe, generator: torch.Generator) -> tuple[bool, int, int]:
    flip = _chance(0.5 if recipe.hflip else 0.0, generator)
    return flip, _whole(0, recipe.train_timesteps, generator), _whole(0, 2**62, generator)


def _concept_item(
    found: Sequence[Anchor], index: int, place: int, recipe: Recipe, generator: torch.Generator
) -> Item:
    anchor = found[index]
    flip, timestep, seed = _common(recipe, generator)
    keyword = anchor.keywords[place % len(anchor.keywords)]
    concept = insert(anchor.prompt, keyword, anchor.safe, recipe.insertion, _whole(0, 3, generator))
    if recipe.noaug:
        return Item(index, anchor.prompt, concept, flip, None, timestep, seed)
    spot, words = draw_place(anchor.image.shape[0], generator)
    return Item(index, anchor.prompt, words + concept, flip, spot, timestep, seed)


def _plain_item(found: Sequence[Anchor], index: int, recipe: Recipe, generator: torch.Generator) -> Item:
    flip, timestep, seed = _common(recipe, generator)
    return Item(index, found[index].prompt, found[index].prompt, flip, None, timestep, seed)
