"""UCE against a float64 solve written from the formula, layer by layer and vector by vector."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from palimpsest.methods import uce
from palimpsest.methods.contract import Target, ThemeTarget, TrainingData
from palimpsest.params import read_yaml
from tests import tiny
from tests.methods.erasing import TARGET

PRESETS = {name: uce.Settings(**values) for name, values in read_yaml("methods/uce.yaml")["presets"].items()}


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def positions(pipeline, text):
    """Hidden states [77, D] in float64 and the position of the last subject token, found by counting ids."""
    ids = pipeline.tokenizer(text)["input_ids"]
    padded = torch.tensor([ids + [pipeline.tokenizer.eos_token_id] * (77 - len(ids))])
    with torch.no_grad():
        hidden = pipeline.text_encoder(padded).last_hidden_state[0].double().numpy()
    return hidden, len(ids) - 2


def oracle(pipeline, words, guide, kept, settings, preserve_scale):
    """The edited layers by the formula, one outer product at a time."""
    edited = {}
    for name, weight in pipeline.unet.named_parameters():
        if not name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            continue
        old = weight.detach().double().numpy()
        left, right = settings.lamb * old, settings.lamb * np.eye(old.shape[1])
        for word in words:
            (c, last), (g, last_guide) = positions(pipeline, word), positions(pipeline, guide)
            count = 77 - max(last, last_guide) if settings.vectors == "tail" else 1
            values = np.stack([old @ g[last_guide + k] for k in range(count)])
            if settings.technique == "tensor":
                own = np.stack([old @ c[last + k] for k in range(count)])
                own = own / np.sqrt((own**2).sum())
                values = values - (own * values).sum() * own
            for k in range(count):
                left = left + settings.erase_scale * np.outer(values[k], c[last + k])
                right = right + settings.erase_scale * np.outer(c[last + k], c[last + k])
        for text in kept:
            p, last = positions(pipeline, text)
            for k in range(77) if settings.vectors == "tail" else [last]:
                left = left + preserve_scale * np.outer(old @ p[k], p[k])
                right = right + preserve_scale * np.outer(p[k], p[k])
        edited[name] = left @ np.linalg.inv(right)
    return edited


def solve(pipeline, target, settings):
    """The edit of the method, in float64."""
    weights = {
        n: p.detach()
        for n, p in pipeline.unet.named_parameters()
        if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    return uce.closed_form(
        weights, uce.collect(pipeline, target, settings), settings, uce.scale_of_preserved(settings, target)
    )


def difference(first, second):
    """The largest relative Frobenius distance of two sets of layers."""
    assert set(first) == set(second)
    return max(
        np.linalg.norm(np.asarray(first[n]) - np.asarray(second[n])) / np.linalg.norm(np.asarray(second[n]))
        for n in first
    )


def change(**values):
    return uce.Settings(**{**PRESETS["compvis2023"].model_dump(), **values})


CASES = {
    "compvis2023": (PRESETS["compvis2023"], " ", [""], 1.0),
    "diffusers2025": (PRESETS["diffusers2025"], "", [], 1.0),
    "a guide, weights and retained prompts": (
        change(guide="a photo of the house", erase_scale=0.7, preserve_retained=True),
        "a photo of the house", ["", *TARGET.retain], 1 / 3,
    ),
    "retained prompts, one vector each": (
        change(vectors="last_subject", preserve_retained=True, preserve_scale=0.2, lamb=0.1),
        " ", ["", *TARGET.retain], 0.2,
    ),
    "projected targets": (change(technique="tensor", guide="house"), "house", [""], 1.0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_matches_the_formula(pipeline, case):
    settings, guide, kept, preserve_scale = CASES[case]
    expected = oracle(pipeline, TARGET.keywords, guide, kept, settings, preserve_scale)
    assert len(expected) == 14
    assert difference(solve(pipeline, TARGET, settings), expected) < 1e-10
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    artifact = uce.fit(pipeline, TARGET, TrainingData(), settings, seed=0)
    handle.remove()
    assert artifact.meta["unet_evaluations"] == len(seen) == 0
    assert difference(artifact.tensors, expected) < 1e-6
    assert all(tensor.dtype == torch.float32 for tensor in artifact.tensors.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_edit_something_and_differ(pipeline, preset):
    artifact = uce.fit(pipeline, TARGET, TrainingData(), PRESETS[preset], seed=0)
    assert all(value > 0.01 for value in artifact.meta["relative_change"].values())
    (other,) = (p for p in PRESETS if p != preset)
    assert (
        difference(
            artifact.tensors, uce.fit(pipeline, TARGET, TrainingData(), PRESETS[other], seed=0).tensors
        )
        > 0.01
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_concept_twice_is_twice_the_scale(pipeline, preset):
    settings = PRESETS[preset]
    vectors = uce.collect(pipeline, TARGET, settings)
    twice = dataclasses.replace(vectors, concepts=[*vectors.concepts] * 2, guides=[*vectors.guides] * 2)
    weights = {n: p.detach() for n, p in pipeline.unet.named_parameters() if n.endswith("attn2.to_k.weight")}
    double = settings.model_copy(update={"erase_scale": 2.0})
    assert (
        difference(
            uce.closed_form(weights, twice, settings, 1.0), uce.closed_form(weights, vectors, double, 1.0)
        )
        < 1e-10
    )


def test_order_of_keywords_and_themes_does_not_matter(pipeline):
    themes = tuple(dataclasses.replace(theme, keywords=theme.keywords[::-1]) for theme in TARGET.themes[::-1])
    settings = PRESETS["compvis2023"]
    assert difference(solve(pipeline, Target(themes), settings), solve(pipeline, TARGET, settings)) < 1e-10


def test_a_large_ridge_keeps_the_base(pipeline):
    base = {n: p.detach() for n, p in pipeline.unet.named_parameters()}
    distances = []
    for lamb in (1e4, 1e6, 1e9):
        edited = solve(pipeline, TARGET, change(lamb=lamb))
        distances.append(difference(edited, {n: base[n].double() for n in edited}))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-5


def test_a_small_ridge_maps_the_concept_to_the_guide(pipeline):
    settings = change(vectors="last_subject", preserve_empty=False, lamb=1e-9, guide="{safe}")
    target = Target(
        (ThemeTarget("uncased", ("gears",), "robot"), ThemeTarget("breakage", ("crack",), "house"))
    )
    vectors = uce.collect(pipeline, target, settings)
    for name, edited in solve(pipeline, target, settings).items():
        old = dict(pipeline.unet.named_parameters())[name].detach().double()
        for concept, guide in zip(vectors.concepts, vectors.guides, strict=True):
            assert torch.allclose(concept @ edited.T, guide @ old.T, atol=1e-6)


def test_apply_at_strengths(pipeline):
    settings = PRESETS["compvis2023"]
    artifact = uce.fit(pipeline, TARGET, TrainingData(), settings, seed=0)
    before = {n: t.clone() for n, t in pipeline.unet.state_dict().items()}
    edited = {
        s: uce.apply(
            pipeline, artifact, TARGET, settings.model_copy(update={"strength": s})
        ).unet.state_dict()
        for s in (0.0, 0.5, 1.0)
    }
    for name, base in before.items():
        assert torch.equal(edited[0.0][name], base)
        assert torch.equal(pipeline.unet.state_dict()[name], base)
        assert torch.equal(edited[1.0][name], artifact.tensors.get(name, base))
        if name in artifact.tensors:
            assert torch.allclose(edited[0.5][name], (base + artifact.tensors[name]) / 2, atol=1e-6)


def test_what_cannot_be_edited_is_refused(pipeline):
    def fit(word, **values):
        target = Target((ThemeTarget("uncased", (word,), "robot"),))
        return uce.fit(pipeline, target, TrainingData(), change(**values), seed=0)

    with pytest.raises(ValueError, match="uce: keyword ' ' has no token"):
        fit(" ")
    with pytest.raises(ValueError, match="uce: keyword 'robot' is replaced by itself"):
        fit("robot", guide="{safe}")
    plain = dataclasses.replace(pipeline, unet=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear has no .* not conditioned on text"):
        uce.fit(plain, TARGET, TrainingData(), PRESETS["compvis2023"], seed=0)


def test_settings_that_cannot_be(pipeline):
    with pytest.raises(ValidationError, match="lamb"):
        uce.Settings(lamb=0.0)
    with pytest.raises(ValidationError, match="erase_scales"):
        uce.Settings(erase_scales=1.0)
