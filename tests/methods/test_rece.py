"""RECE against a float64 oracle that edits layer by layer and derives vectors by least squares."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from palimpsest.methods import _closed_form as ridge
from palimpsest.methods import rece, registry, uce
from palimpsest.methods.contract import Target, ThemeTarget, TrainingData
from tests import tiny
from tests.methods.erasing import TARGET

PRESETS = list(registry.settings_files("methods")["rece"].presets)


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def settings(preset="official", **changes):
    return registry.settings("rece", preset, changes)


def layers(pipeline):
    return {
        name: weight.detach().double().numpy()
        for name, weight in pipeline.unet.named_parameters()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }


def hidden(pipeline, text):
    """Hidden states [77, D] of a text in float64, padded by hand, and its number of tokens."""
    ids = pipeline.tokenizer(text)["input_ids"]
    padded = torch.tensor([ids + [pipeline.tokenizer.eos_token_id] * (77 - len(ids))])
    with torch.no_grad():
        return pipeline.text_encoder(padded).last_hidden_state[0].double().numpy(), len(ids) - 2


def ridge_edit(old, moved, kept, lamb, erase_scale, preserve_scale):
    """One layer by the formula of UCE. moved: (vector, guide) pairs of rows; kept: rows."""
    left, right = lamb * old, lamb * np.eye(old.shape[1])
    for vector, guide in moved:
        left = left + erase_scale * np.outer(old @ guide, vector)
        right = right + erase_scale * np.outer(vector, vector)
    for vector in kept:
        left = left + preserve_scale * np.outer(old @ vector, vector)
        right = right + preserve_scale * np.outer(vector, vector)
    return np.linalg.solve(right.T, left.T).T


def trigger(base, now, vectors, regularisation):
    """argmin sum |W a - W0 c|^2 + lambda |a|^2 of each row c, by least squares on the stacked layers."""
    width = vectors.shape[1]
    left = np.concatenate([*(now[n] for n in base), math.sqrt(regularisation) * np.eye(width)])
    asked = np.concatenate([*(base[n] @ vectors.T for n in base), np.zeros((width, len(vectors)))])
    found = np.linalg.lstsq(left, asked, rcond=None)[0]
    output = np.concatenate([now[n] @ found - base[n] @ vectors.T for n in base])
    return found.T, (output**2).sum() / (asked**2).sum()


def oracle(pipeline, s, guides, kept_first, kept_later):
    """The edited layers and what each round missed. guides: by keyword; kept_*: texts, with repeats."""
    base = layers(pipeline)
    moved = []
    for word in TARGET.keywords:
        (c, n), (g, m) = hidden(pipeline, word), hidden(pipeline, guides[word])
        moved += [(c[n + k], g[m + k]) for k in range(77 - max(n, m))]
    kept = [row for text in kept_first for row in hidden(pipeline, text)[0]]
    scale = max(0.1, 1 / len(kept_first)) if s.first_preserve_scale is None else s.first_preserve_scale
    now = {
        name: ridge_edit(old, moved, kept, s.first_lamb, s.first_erase_scale, scale)
        for name, old in base.items()
    }
    missed = []
    for _ in range(s.rounds):
        moved, shares = [], []
        for word in TARGET.keywords:
            vectors, guide = hidden(pipeline, word)[0], hidden(pipeline, guides[word])[0]
            found, _ = trigger(base, now, vectors, s.regularisation)
            moved += list(zip(found, guide, strict=True))
            shares.append(vectors)
        missed.append(trigger(base, now, np.concatenate(shares), s.regularisation)[1])
        kept = [row for text in kept_later for row in hidden(pipeline, text)[0]]
        now = {
            name: ridge_edit(old, moved, kept, s.lamb, s.erase_scale, s.preserve_scale)
            for name, old in now.items()
        }
    return now, missed


def difference(first, second):
    assert set(first) == set(second)
    return max(
        np.linalg.norm(np.asarray(first[n]) - np.asarray(second[n])) / np.linalg.norm(np.asarray(second[n]))
        for n in first
    )


def solved(pipeline, s, target=TARGET):
    return rece.solve(pipeline, target, s, ridge.cross_attention_weights(pipeline.unet))


SAFE = {word: theme.safe for theme in TARGET.themes for word in theme.keywords}
CASES = {
    "official": (settings(), " ", [""], [" "] * 5),
    "unsafe": (settings("unsafe"), " ", [""], [" "] * 5),
    "style": (settings("style"), "art", ["", *TARGET.retain], ["", *TARGET.retain]),
    "object": (settings("object"), " ", [""], [""]),
    "intended": (settings("intended"), " ", [""], [""]),
    "weights and surrogates": (
        settings(guide="{safe}", erase_scale=0.6, lamb=0.3, preserve="the house", first_erase_scale=2.0),
        SAFE, [""], ["the house"] * 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_matches_the_formula(pipeline, case):
    chosen, guide, first, later = CASES[case]
    guides = guide if isinstance(guide, dict) else dict.fromkeys(TARGET.keywords, guide)
    expected, missed = oracle(pipeline, chosen, guides, first, later)
    given, losses = solved(pipeline, chosen)
    assert len(expected) == 14
    # The method solves normal equations, the oracle least squares: of a condition of 1e7, 1e-9 is left.
    assert difference(given, expected) < 1e-8
    assert losses == pytest.approx(missed, rel=1e-8)
    artifact = rece.fit(pipeline, TARGET, TrainingData(), chosen, seed=0)
    assert difference(artifact.tensors, expected) < 1e-6
    assert artifact.meta["losses"] == losses and artifact.meta["unet_evaluations"] == 0
    assert len(losses) == chosen.rounds


def test_the_published_values():
    assert [settings(p).rounds for p in PRESETS] == [3, 2, 1, 1, 3]
    assert [settings(p).regularisation for p in PRESETS] == [0.1, 0.1, 1e-3, 1e-3, 0.1]
    assert settings() == rece.Settings()


def test_without_rounds_it_is_uce(pipeline):
    chosen, weights = settings(rounds=0), ridge.cross_attention_weights(pipeline.unet)
    first = rece.first_edit(chosen)
    vectors = uce.collect(pipeline, TARGET, first)
    alone = uce.closed_form(weights, vectors, first, 1.0)
    assert difference(solved(pipeline, chosen)[0], alone) < 1e-12
    assert first == registry.settings("uce", "compvis2023")


def test_derived_vectors_bring_the_concept_back_and_a_round_takes_it_away(pipeline):
    base = ridge.layer_moments(ridge.cross_attention_weights(pipeline.unet))
    vectors = uce.embeddings(pipeline, ["gears"])["gears"]
    identity = torch.eye(32, dtype=torch.float64)
    found, missed = rece.derived(vectors, base, identity, 1e-9)
    assert missed < 1e-9
    assert torch.allclose(found, vectors, atol=1e-3)  # unedited layers: the vector itself triggers it
    losses = solved(pipeline, settings(rounds=6))[1]
    assert losses[0] < losses[-1]
    lengths = [rece.derived(vectors, base, identity / 2, lamb)[0].norm() for lamb in (1e-3, 1.0, 1e3)]
    assert lengths[0] > lengths[1] > lengths[2]


def test_more_rounds_move_the_layers_further(pipeline):
    base = layers(pipeline)
    moved = [difference(solved(pipeline, settings(rounds=n))[0], base) for n in (0, 1, 3)]
    assert moved[0] < moved[1] < moved[2]


def test_order_of_keywords_and_themes_does_not_matter(pipeline):
    themes = tuple(dataclasses.replace(theme, keywords=theme.keywords[::-1]) for theme in TARGET.themes[::-1])
    turned = solved(pipeline, settings(), Target(themes))[0]
    assert difference(turned, solved(pipeline, settings())[0]) < 1e-9


def test_every_text_is_encoded_once(pipeline):
    rows = []
    handle = pipeline.text_encoder.register_forward_hook(
        lambda module, args, output: rows.append(len(output.last_hidden_state))
    )
    rece.fit(pipeline, TARGET, TrainingData(), settings(), seed=0)
    handle.remove()
    assert sum(rows) == 7  # five keywords, the guide and the empty prompt


def test_apply_at_strengths(pipeline):
    chosen = settings()
    artifact = rece.fit(pipeline, TARGET, TrainingData(), chosen, seed=0)
    before = {n: t.clone() for n, t in pipeline.unet.state_dict().items()}
    for strength in (0.0, 0.5, 1.0):
        used = rece.apply(pipeline, artifact, TARGET, settings(strength=strength)).unet.state_dict()
        for name, base in before.items():
            wanted = base + strength * (artifact.tensors.get(name, base) - base)
            assert torch.allclose(used[name], wanted, atol=1e-6)
            assert torch.equal(pipeline.unet.state_dict()[name], base)
    assert rece.apply(pipeline, artifact, TARGET, settings(strength=0.0)) is pipeline


@pytest.mark.parametrize(
    ("words", "safe", "guide", "message"),
    [
        (("gears", ""), "robot", " ", "'' has no token"),
        (("gears", "robot"), "robot", "{safe}", "'robot' is replaced by itself"),
        ((), "robot", " ", "no keywords"),
    ],
)
def test_targets_that_cannot_be(pipeline, words, safe, guide, message):
    target = Target((ThemeTarget("uncased", words, safe),))
    with pytest.raises(ValueError, match=message):
        rece.fit(pipeline, target, TrainingData(), settings(guide=guide), seed=0)


def test_a_unet_without_text_is_refused():
    from diffusers.models import UNet2DModel

    pipeline = tiny.build()
    unet = UNet2DModel(block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
                       up_block_types=("UpBlock2D",) * 2, norm_num_groups=4)  # fmt: skip
    with pytest.raises(ValueError, match="not conditioned on text"):
        rece.fit(dataclasses.replace(pipeline, unet=unet), TARGET, TrainingData(), settings(), seed=0)
