"""What methods do with the texts of Stable Diffusion XL, against diffusers' own encoding and formulas written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.methods import _masked_training, _subspace, cleaned, esd, mace, safree, spm, uce
from palimpsest.methods._training import generator
from palimpsest.methods.contract import Artifact, Target, ThemeTarget, TrainingData
from palimpsest.params import Model, read_yaml
from palimpsest.sampling.embeddings import encode, unconditional_cached
from palimpsest.sampling.load import load_pipeline
from palimpsest.sampling.pipeline import Conditioning
from tests import layouts, tiny
from tests.methods.erasing import TARGET, abar

FIRST, SECOND = layouts.WIDTH, layouts.SECOND_WIDTH


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return layouts.sdxl(tmp_path_factory.mktemp("xl") / "sdxl")


@pytest.fixture(scope="module")
def pipeline(folder):
    return load_pipeline(Model(path=str(folder), resolution=16, architecture="sdxl"))


@pytest.fixture(scope="module")
def theirs(folder):
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(folder)


def encoded(theirs, prompt):
    """States [77, 80] and pooled embedding [48] by diffusers."""
    with torch.no_grad():
        states, _, pooled, _ = theirs.encode_prompt(prompt, do_classifier_free_guidance=False)
    return states[0], pooled[0]


def asked(theirs, x, told, states, pooled):
    """The UNet of diffusers, told that the picture is 16 x 16 and uncut."""
    sizes = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]])
    added = {"text_embeds": pooled[None], "time_ids": sizes}
    with torch.no_grad():
        return theirs.unet(x, told, states[None], added_cond_kwargs=added).sample


def test_esd_trains_on_predictions_with_the_pooled_embedding_and_the_sizes(pipeline, theirs):
    preset = read_yaml("methods/esd.yaml")["presets"]["x_compvis"]
    quick = {"iterations": 1, "batch_size": 3, "steps": 5, "concept_mode": "sample", "trajectory": "frozen"}
    settings = esd.Settings(**{**preset, **quick, "stop_rule": "exact"})
    artifact = esd.fit(pipeline, TARGET, TrainingData(), settings, 5)
    draws = esd.draw(settings, 5, torch.tensor([801, 601, 401, 201, 1]), 1000, generator(5, "esd"))
    words, levels, total = [w for theme in TARGET.themes for w in theme.keywords], abar(), 0.0
    nothing = torch.zeros(77, FIRST + SECOND), torch.zeros(SECOND)
    for row in range(3):
        concept, told = encoded(theirs, words[draws.concepts[0, row]]), draws.timesteps[0, row][None]
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(int(draws.seeds[0, row])))
        for now in (801, 601, 401, 201, 1)[: int(draws.stops[0, row])]:
            empty, full = (asked(theirs, x, torch.tensor([now]), *given) for given in (nothing, concept))
            noise, a, later = empty + 3.0 * (full - empty), levels[now], levels[max(now - 200, 0)]
            x = later**0.5 * (x - (1 - a) ** 0.5 * noise) / a**0.5 + (1 - later) ** 0.5 * noise
        empty, full = (asked(theirs, x, told, *given) for given in (nothing, concept))
        wanted = empty - settings.negative_guidance * (full - empty)
        total += float(((full - wanted) ** 2).mean()) / 3
    assert artifact.meta["losses"] == [pytest.approx(total, rel=1e-4)]


def test_uce_maps_the_states_of_both_encoders(pipeline, theirs):
    target = Target((ThemeTarget("uncased", ("gears", "blue gear"), "a robot"),))
    settings = uce.Settings(vectors="tail", guide="{safe}", lamb=0.5, preserve_scale=0.3, preserve_empty=True)
    artifact = uce.fit(pipeline, target, TrainingData(), settings, 0)
    # Tokens up to the last one of the text, the start token included.
    length = {"gears": 2, "blue gear": 3, "a robot": 3}
    guide, pairs = encoded(theirs, "a robot")[0].double(), []
    for word in ("gears", "blue gear"):
        states = encoded(theirs, word)[0].double()
        count = 77 - max(length[word], length["a robot"]) + 1
        pairs.append((states[length[word] - 1 :][:count], guide[length["a robot"] - 1 :][:count]))
    kept = encoded(theirs, "")[0].double()
    concepts, guides = (torch.cat(part) for part in zip(*pairs, strict=True))
    base = 0.5 * torch.eye(FIRST + SECOND, dtype=torch.float64) + 0.3 * kept.T @ kept
    right = torch.linalg.inv(base + concepts.T @ concepts)
    for name, tensor in artifact.tensors.items():
        weight = dict(theirs.unet.named_parameters())[name].detach().double()
        expected = weight @ (base + guides.T @ concepts) @ right
        assert (tensor - expected).norm() < 1e-4 * (expected - weight).norm(), name
    assert len(artifact.tensors) == sum(
        ".attn2.to_k." in n or ".attn2.to_v." in n for n, _ in theirs.unet.named_parameters()
    )


def test_safree_filters_the_states_of_the_second_encoder(pipeline, theirs):
    words, prompt = ("gears", "crack"), "a red robot with gears"
    settings = safree.Settings(alpha=0.0, validate_steps=False, negative_prompt=False)
    target = Target((ThemeTarget("uncased", words, "a robot"),))
    (hook,) = safree.apply(pipeline, Artifact(), target, settings).hooks
    before = encode(pipeline, [prompt])
    texts = {"uncond": unconditional_cached(pipeline), "cond": before}
    after = (
        hook.embed(pipeline, Conditioning((prompt,), texts, torch.zeros(1, 4, 8, 8))).notes["safree"].texts
    )
    space = torch.stack([encoded(theirs, word)[1] for word in words]).double().T
    ids = theirs.tokenizer_2(prompt, return_tensors="pt").input_ids
    rows = ids.repeat(5, 1)
    rows[range(5), range(1, 6)] = 0
    with torch.no_grad():
        masked = theirs.text_encoder_2(rows).text_embeds.double().T
    concept, own = (m @ torch.linalg.pinv(m.T @ m) @ m.T for m in (space, masked))
    away = torch.eye(SECOND, dtype=torch.float64) - concept
    distance = (away @ masked).norm(dim=0)
    others = [(distance.sum() - d) / 4 for d in distance]
    triggers = [1 + i for i in range(5) if distance[i] >= others[i]]
    assert 0 < len(triggers) < 5
    expected = before[0].double()
    expected[triggers, FIRST:] = (away @ own @ before[0, triggers, FIRST:].double().T).T
    assert (after[0] - expected).abs().max() < 1e-3
    still = [i for i in range(78) if i not in triggers]
    assert torch.equal(after[0, still], before[0, still])
    assert torch.equal(after[0, :, :FIRST], before[0, :, :FIRST])


def test_safree_needs_states_as_wide_as_the_pooled_embedding(pipeline):
    config = pipeline.text_encoder_2.config
    try:
        config.projection_dim = SECOND + 1
        with pytest.raises(ValueError, match=f"states {SECOND} wide and a pooled embedding of {SECOND + 1}"):
            _subspace.compared(pipeline)
    finally:
        config.projection_dim = SECOND


def test_random_anchors_of_spm_are_drawn_apart_for_states_and_pooled_embedding(pipeline):
    text = encode(pipeline, ["gears"])[0]
    found = spm.anchor(text, 3, pooled=SECOND)
    assert found.shape == text.shape
    assert not found[-1, SECOND:].any()
    shares = [float(found[rows].norm() / text[rows].norm()) for rows in (slice(0, 77), slice(77, 78))]
    assert all(0.8 <= share <= 1.2 for share in shares)
    assert shares[0] != pytest.approx(shares[1], rel=1e-3)
    # The states alone are what a text without a pooled row would get.
    assert torch.equal(found[:77], spm.anchor(text[:77], 3))


def test_the_captions_of_mace_count_by_their_states(pipeline, theirs):
    settings = mace.Settings(prior_captions=None, fuse_prior=1.0)
    found = mace.prior_moment(pipeline, ["a robot", "the tree"], settings)
    states = torch.cat([encoded(theirs, text)[0] for text in ("a robot", "the tree")]).double()
    assert found.shape == (FIRST + SECOND, FIRST + SECOND)
    assert (found - states.T @ states).norm() < 1e-5 * found.norm()


def test_filling_counts_as_end_tokens_whatever_token_it_is():
    prompt = [90, 7, 8, 91, 0, 0]
    marks = {
        ends: _masked_training.token_mask(prompt, [8], 91, ends).tolist() for ends in ("all", "first", "none")
    }
    assert marks["all"] == [False, False, True, True, True, True]
    assert marks["first"] == [False, False, True, True, False, False]
    assert marks["none"] == [False, False, True, False, False, False]


def test_a_lone_unet_of_another_layout_is_refused_and_one_of_xl_is_told_sizes(pipeline, folder, tmp_path):
    def applied(base, place):
        return cleaned.apply(base, Artifact(), TARGET, cleaned.Settings(checkpoint=str(place), parts="unet"))

    with pytest.raises(
        ValueError, match="projection_class_embeddings_input_dim is 96, the experiment's model has None"
    ):
        applied(tiny.build(), folder)
    other = layouts.sdxl(tmp_path / "other", seed=1)
    assert applied(pipeline, other).unet.reduction == pipeline.unet.reduction == 2
    assert np.isclose(float(pipeline.unet.pooled_width), SECOND)
