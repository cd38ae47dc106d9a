"""The closed forms of MACE, the way of its utilities: the refinement and the fusion, without the training between them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear

from official import Case, Outcome
from palimpsest.methods import _refinement, mace
from palimpsest.methods._cross_attention import weight_names
from palimpsest.methods._masked_attention import Adapters
from palimpsest.methods._training import generator
from palimpsest.methods.contract import Target, TrainingData
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.pipeline import Pipeline

Layers = dict[str, Linear]
Sums = dict[str, tuple[Tensor, Tensor]]


def layers_of(pipeline: Pipeline) -> Layers:
    own = dict(pipeline.unet.named_modules())
    names = [name.removesuffix(".weight") for name in weight_names(pipeline.unet, ("to_k", "to_v"))]
    return {f"{name}.weight": copy.deepcopy(own[name]) for name in names}


def additions(pipeline: Pipeline, words: Sequence[str], rank: int, seed: int) -> Adapters:
    """What stands for trained additions, one per keyword: random ones, about a hundredth of the layers."""
    names = weight_names(pipeline.unet, ("to_k", "to_v"))
    generators = [generator(seed, f"mace/{word}/start") for word in words]
    adapters = Adapters.drawn(pipeline.unet, names, rank, generators)
    for up in adapters.up:
        drawn = [torch.randn(one.shape, generator=g) for one, g in zip(up, generators, strict=True)]
        up.data.copy_(1e-3 * torch.stack(drawn))
    return adapters


@torch.no_grad()
def prepared(
    pipeline: Pipeline, layers: Layers, old: Sequence[str], new: Sequence[str], whole: bool
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Contexts of one keyword, and what every layer gives for each: prompt by prompt, layer by layer. whole: all
    positions of the prompts with the keyword, else those that both prompts have.
    """
    used = {name: copy.deepcopy(layer) for name, layer in layers.items()}
    embedded = encode(pipeline, [*old, *new], len(old) + len(new))
    contexts, values = [], []
    for index, (first, second) in enumerate(zip(old, new, strict=True)):
        ids = [mace.tokens_of(pipeline, [prompt])[0] for prompt in (first, second)]
        mine, theirs = _refinement.kept_positions(*ids, embedded.shape[1])
        vectors = embedded[index] if whole else embedded[index][mine]
        wanted = vectors if whole else embedded[len(old) + index][theirs]
        contexts.append(vectors)
        values.append({name: layer(wanted) for name, layer in used.items()})
    return contexts, values


@torch.no_grad()
def cached(pipeline: Pipeline, layers: Layers, captions: Sequence[str], count: int | None) -> Sums:
    """Sums over all positions of all captions, for every layer: a caption at a time, as many as `count`."""
    found: Sums = {}
    for caption in captions:
        contexts, values = prepared(pipeline, layers, [caption], [caption], whole=True)
        found = summed(layers, [(contexts, values)], found)
    factor = count / len(captions) if count and captions else 1.0
    return {name: (factor * first, factor * second) for name, (first, second) in found.items()}


def summed(
    layers: Layers, found: Sequence[tuple[list[Tensor], list[dict[str, Tensor]]]], start: Sums
) -> Sums:
    """start plus, for every layer, the sums of v c^T and of c c^T, keyword by keyword and position by position."""
    result = {}
    for name, layer in layers.items():
        width = layer.weight.shape[1]
        first, second = start.get(
            name, (torch.zeros_like(layer.weight), layer.weight.new_zeros(width, width))
        )
        for contexts, values in found:
            c, v = torch.stack(contexts, 2), torch.stack([value[name] for value in values], 2)
            first = first + torch.bmm(v, c.transpose(1, 2)).sum(0)
            second = second + torch.bmm(c, c.transpose(1, 2)).sum(0)
        result[name] = (first, second)
    return result


@torch.no_grad()
def solved(
    layers: Layers,
    found: Sequence[tuple[list[Tensor], list[dict[str, Tensor]]]],
    prior: Sums,
    scale: float,
    lamb: float,
) -> None:
    """Replace each layer by its own ridge solution, by an inverse in float32."""
    for name, layer in layers.items():
        first, second = summed({name: layer}, found, {})[name]
        if prior:
            first, second = first + scale * prior[name][0], second + scale * prior[name][1]
        eye = torch.eye(len(second), device=second.device)
        layer.weight.data = (first + lamb * layer.weight) @ torch.inverse(second + lamb * eye)


def run(
    pipeline: Pipeline, target: Target, data: TrainingData, settings: mace.Settings, seed: int
) -> Outcome:
    """Both stages encode the prompts of each keyword; the layers are copied for every keyword."""
    words, layers = mace.pairs(target, settings), layers_of(pipeline)
    prompts = {
        word: [[text.format(one) for text in settings.templates] for one in (word, other)]
        for word, other in words
    }
    prior = cached(pipeline, layers, mace.captions(target, settings), settings.prior_captions)
    found = [prepared(pipeline, layers, *texts, whole=False) for texts in prompts.values()]
    power = 2 if settings.prior_twice else 1
    solved(layers, found, prior, settings.refine_prior**power, settings.lamb)
    adapters, found = additions(pipeline, list(prompts), settings.rank, seed), []
    for index, texts in enumerate(prompts.values()):
        fused = {name: copy.deepcopy(layer) for name, layer in layers.items()}
        for name, (up, down) in adapters.changes(index).items():
            weight = fused[name].weight
            weight.data += up.to(weight) @ down.to(weight)
        found.append(prepared(pipeline, fused, *texts, whole=True))
    solved(layers, found, prior, settings.fuse_prior, settings.lamb)
    return Outcome({name: layer.weight.detach() for name, layer in layers.items()})


def ours(
    pipeline: Pipeline, target: Target, data: TrainingData, settings: mace.Settings, seed: int
) -> Outcome:
    """What `mace.fit` does without stage 2."""
    words, own = mace.pairs(target, settings), dict(pipeline.unet.named_parameters())
    weights: Mapping[str, Any] = {
        name: own[name].detach().double().cpu() for name in weight_names(pipeline.unet, ("to_k", "to_v"))
    }
    found = [moments for moments, _ in mace.moments_of(pipeline, words, settings)]
    prior = mace.prior_moment(pipeline, mace.captions(target, settings), settings)
    power = 2 if settings.prior_twice else 1
    refined = _refinement.refinement(found, settings.refine_prior**power * prior, settings.lamb)
    adapters = additions(pipeline, [word for word, _ in words], settings.rank, seed)
    edited = _refinement.fusion(weights, refined, found, adapters, settings.fuse_prior * prior, settings.lamb)
    return Outcome({name: tensor.float() for name, tensor in edited.items()})


DOES = (
    "prompts encoded once per stage; every layer applied to every prompt; sums of outer products and an inverse for each "
    "layer, position by position; layers copied for every keyword"
)
FEW = {"templates": ["a photo of {}", "{} on the beach"]}
CASES = (
    Case("mace", "t14_object", {}, FEW, goal=20.0, does=DOES, run=run, ours=ours, note="closed forms"),
    Case(
        "mace", "explicit", {"lamb": 10.0, "refine_prior": 0.1, "fuse_prior": 0.1, "prior_captions": None}, FEW,
        goal=20.0, does=DOES + "; captions one by one", run=run, ours=ours, note="closed forms with captions",
    ),
)  # fmt: skip
