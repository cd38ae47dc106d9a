"""UCE, the way of its script of 2023."""

from __future__ import annotations

import torch
from torch import Tensor

from official import Case, Outcome
from palimpsest.methods import uce
from palimpsest.methods.contract import Target, TrainingData
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.pipeline import Pipeline


def tails(pipeline: Pipeline, word: str, guide: str) -> tuple[Tensor, Tensor]:
    """States [n, D] of a keyword and its guide from their last subject token on, cut to one length. Encodes both."""
    hidden = encode(pipeline, [word, guide])
    first, second = uce.last_subject(pipeline.tokenizer, [word, guide])
    length = hidden.shape[1] - max(first, second)
    return hidden[0, first : first + length], hidden[1, second : second + length]


def run(pipeline: Pipeline, target: Target, data: TrainingData, settings: uce.Settings, seed: int) -> Outcome:
    """Layer by layer. For each one all texts are encoded and go through the projections of all layers, of which
    one result is used; sums of outer products are made from a stack of them, and the matrix is inverted.
    """
    layers = {
        name: weight
        for name, weight in pipeline.unet.named_parameters()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    scale = uce.scale_of_preserved(settings, target)
    edited = {}
    for place, (name, weight) in enumerate(layers.items()):
        numerator = settings.lamb * weight
        gram = settings.lamb * torch.eye(weight.shape[1], device=weight.device)
        terms = [(word, guide, settings.erase_scale) for word, guide in uce.pairs(target, settings)]
        terms += [(text, text, scale) for text in uce.kept_texts(target, settings)]
        for position, (word, guide, strength) in enumerate(terms):
            if position < len(terms) - len(uce.kept_texts(target, settings)):
                context, wanted = tails(pipeline, word, guide)
            else:
                context = wanted = encode(pipeline, [word, guide])[0]
            values = [wanted @ layer.T for layer in layers.values()]
            column, row = context[:, :, None], context[:, None, :]
            numerator = numerator + strength * (values[place][:, :, None] @ row).sum(0)
            gram = gram + strength * (column @ row).sum(0)
        edited[name] = numerator @ torch.inverse(gram)
    return Outcome({name: weight.detach() for name, weight in edited.items()})


CASES = (
    Case(
        "uce", "compvis2023", {}, {}, goal=20.0, run=run,
        does="texts encoded anew for every layer and put through the projections of all layers, of which one result is used",
    ),
)  # fmt: skip
