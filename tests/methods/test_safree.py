"""SAFREE against the definitions of its filter, its choice of steps and its re-attention, written out one
prompt at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from palimpsest.methods import _subspace as space
from palimpsest.methods import registry, safree
from palimpsest.methods.contract import Artifact, Target, ThemeTarget
from palimpsest.params import Sampler
from palimpsest.sampling import schedulers
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.loop import Request, decode, generate
from palimpsest.sampling.noise import initial_noise
from palimpsest.sampling.pipeline import Step
from tests import tiny

PRESETS = ["official", "style", "intended", "paper"]
TARGET = Target((ThemeTarget("uncased", ("gears", "blue gear", "crack"), "robot"),))
REQUESTS = [
    Request("a", "a robot with gears", 5),
    Request("b", "the red house on a tree", 6),
    Request("c", "crack", 7),
    Request("d", "", 8),
]
SAMPLER = Sampler(name="ddim", steps=5, guidance=4.0)
# Of five steps the first three at most, and a sigmoid that the betas of random weights lie on both sides of.
SHORT = {"most_fraction": 0.4, "midpoint": 0.8, "slope": 30.0}


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def settings(preset="official", **changes):
    return registry.settings("safree", preset, changes)


def erased(pipeline, chosen, target=TARGET):
    return safree.apply(pipeline, Artifact(), target, chosen)


def images(pipeline, requests=REQUESTS, sampler=SAMPLER):
    return np.stack([g.image for g in generate(pipeline, requests, sampler, 16)]).astype(int)


def projector(columns):
    """E (E^T E)^+ E^T of E [D, n]."""
    return columns @ np.linalg.pinv(columns.T @ columns) @ columns.T


def end_state(pipeline, ids):
    """Hidden state of the end token of ids padded to 77."""
    padded = torch.tensor([ids + [pipeline.tokenizer.eos_token_id] * (77 - len(ids))])
    with torch.no_grad():
        return pipeline.text_encoder(padded).last_hidden_state[0, len(ids) - 1].double().numpy()


def oracle(pipeline, prompt, chosen, target=TARGET):
    """(embeddings [77, D], filtered ones, index of the last filtered step of 5) of one prompt."""
    ids = pipeline.tokenizer(prompt)["input_ids"]
    count, text = len(ids) - 2, encode(pipeline, [prompt])[0].double().numpy()
    if count == 0:
        return text, text, 0
    words = [end_state(pipeline, pipeline.tokenizer(w)["input_ids"]) for w in target.keywords]
    away = np.eye(32) - projector(np.stack(words, axis=1))
    masked = [
        end_state(pipeline, [0 if k == i + 1 else token for k, token in enumerate(ids)]) for i in range(count)
    ]
    own = projector(np.stack(masked, axis=1))
    distances = [np.linalg.norm(away @ p) for p in masked]
    filtered, cosines = text.copy(), []
    for k in range(count + 2):
        moved = away @ own @ text[k]
        cosines.append(moved @ text[k] / np.linalg.norm(moved) / np.linalg.norm(text[k]))
        if 1 <= k <= count:
            others = distances[: k - 1] + distances[k:]
            if not others:
                trigger = chosen.lone_token_triggers
            else:
                trigger = distances[k - 1] >= (1 + chosen.alpha) * sum(others) / len(others)
            if trigger:
                filtered[k] = text[k] + chosen.strength * (moved - text[k])
    beta = 1 - sum(cosines) / len(cosines)
    share = 1 / (1 + math.exp(-chosen.slope * (beta - chosen.midpoint)))
    most = chosen.most_steps if chosen.most_fraction is None else chosen.most_fraction * 5
    return text, filtered, round(most * share) if chosen.validate_steps else 5


def test_the_published_values():
    rows = [settings(p) for p in PRESETS]
    assert settings() == safree.Settings()
    assert [r.alpha for r in rows] == [0.01] * 4
    assert [r.most_steps for r in rows] == [10] * 4
    for beta in (0.3, 0.52, 0.55, 0.7):  # f_beta of the official code, for its two kinds of concept
        for row, k, t in ((rows[0], 2.5, 5.333), (rows[1], 3.5, 5.5)):
            published = 1 / (1 + math.exp(-2.0 * k * (10 * beta - t)))
            assert 1 / (1 + math.exp(-row.slope * (beta - row.midpoint))) == pytest.approx(published)


@pytest.mark.parametrize("alpha", [0.01, -0.05, 0.2])
def test_triggers_and_embeddings_match_the_definition(pipeline, alpha):
    chosen = settings(alpha=alpha)
    concept = space.concept_space(pipeline, TARGET.keywords)
    seen = set()
    for prompt in ("a robot with gears", "the red house on a tree", "blue gear", "crack", "", "a a lamp"):
        text, expected, last = oracle(pipeline, prompt, chosen)
        tokens = space.masked_tokens(pipeline, prompt, 0)
        given, share = safree.filter_text(torch.from_numpy(text), tokens, concept, chosen)
        assert np.abs(given.numpy() - expected).max() < 1e-5
        assert safree.last_step(torch.tensor([share]), 5, chosen).item() == last
        moved = (np.abs(expected - text).max(axis=1) > 0)[1 : tokens.count + 1]
        seen |= set(moved.tolist())
        assert not (expected - text)[tokens.count + 1 :].any()
    assert True in seen and (alpha < 0 or False in seen)


def test_filtered_tokens_have_left_the_concept_space(pipeline):
    concept = space.concept_space(pipeline, TARGET.keywords)
    assert concept.shape == (32, 3)
    text = encode(pipeline, ["crack"])[0].double()
    tokens = space.masked_tokens(pipeline, "crack", 0)
    given, _ = safree.filter_text(text, tokens, concept, settings())
    assert (given[1] @ concept).abs().max() < 1e-10 < 0.1 < (text[1] @ concept).abs().max()
    assert torch.equal(given[2:], text[2:])
    kept, _ = safree.filter_text(text, tokens, concept, settings(lone_token_triggers=False))
    assert torch.equal(kept, text)


def test_a_space_counts_repeated_and_long_texts_once(pipeline):
    one = space.concept_space(pipeline, ["gears"])
    both = space.concept_space(pipeline, ["gears", "gears"])
    assert both.shape == one.shape
    assert torch.allclose(both @ both.T, one @ one.T)
    long = space.masked_tokens(pipeline, "gears " * 100, 0)
    assert long.count == 75 and torch.isfinite(long.pooled).all()


def run(pipeline, request, chosen, batch_size=1):
    """The image of one request by a loop that follows the definition."""
    text, filtered, last = oracle(pipeline, request.prompt, chosen)
    cond, moved = (torch.from_numpy(t).float()[None] for t in (text, filtered))
    uncond = encode(pipeline, [TARGET.text if chosen.negative_prompt else ""])
    scheduler = schedulers.build("ddim", pipeline.scheduler.config, 5)
    latents = initial_noise(request.seed, (1, 4, 8, 8))
    for index, timestep in enumerate(scheduler.timesteps):
        active = index <= last
        texts = torch.cat([uncond, moved if active else cond, cond])
        with torch.no_grad(), reattended(pipeline.unet, chosen, active and chosen.re_attention):
            noise = pipeline.unet(latents.repeat(3, 1, 1, 1), timestep, texts).sample
        latents = scheduler.step(noise[:1] + 4.0 * (noise[1:2] - noise[:1]), timestep, latents).prev_sample
    return decode(pipeline, latents)[0].numpy().astype(int), last


class reattended:
    """Filters the skip connections of sample 1 against sample 2 by a whole Fourier transform, where each
    residual block of the way up joins them."""

    def __init__(self, unet, chosen, on):
        self.blocks = [r for block in unet.up_blocks for r in block.resnets] if on else []
        self.scales = {64: chosen.wide_scale, 32: chosen.next_scale}

    def __enter__(self):
        # Channels of the backbone before each residual block of the tiny UNet; the rest is the skip.
        self.handles = [
            block.register_forward_pre_hook(lambda module, args, w=width: (self.joined(args[0], w), args[1]))
            for block, width in zip(self.blocks, (64, 64, 64, 32), strict=bool(self.blocks))
        ]

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def joined(self, features, width):
        skip = features[:, width:]
        transformed = torch.fft.fftshift(torch.fft.fftn(skip.double(), dim=(-2, -1)), dim=(-2, -1))
        row, column = (side // 2 for side in skip.shape[-2:])
        low = (slice(None), slice(row - 1, row + 1), slice(column - 1, column + 1))
        mine, theirs = transformed[1][low], transformed[2][low]
        transformed[1][low] = torch.where(mine.real > theirs.real, self.scales[width] * mine, mine)
        back = torch.fft.ifftn(torch.fft.ifftshift(transformed, dim=(-2, -1)), dim=(-2, -1)).real
        return torch.cat([features[:, :width], back.float()], dim=1)


@pytest.mark.parametrize(
    "chosen",
    [
        settings(**SHORT),
        settings("intended", **SHORT),
        settings("paper", most_fraction=0.4, strength=0.7),
        settings(validate_steps=False, negative_prompt=False),
    ],
    ids=["official", "intended", "paper", "all steps"],
)
def test_images_equal_a_loop_of_one_image(pipeline, chosen):
    given = images(erased(pipeline, chosen))
    expected = [run(pipeline, request, chosen) for request in REQUESTS]
    for row, (image, _) in enumerate(expected):
        assert np.abs(given[row] - image).max() <= 1
    assert np.abs(given - images(pipeline)).max() > 5


def test_prompts_of_a_batch_are_filtered_for_different_numbers_of_steps(pipeline):
    lasts = {oracle(pipeline, request.prompt, settings(**SHORT))[2] for request in REQUESTS}
    assert len(lasts) > 1


def test_attenuation_equals_the_whole_transform():
    generator = torch.Generator().manual_seed(3)
    for height, width in ((4, 4), (8, 6), (5, 7)):
        own, other = (torch.randn(2, 3, height, width, generator=generator) for _ in range(2))
        expected = torch.fft.fft2(own.double())
        reference = torch.fft.fft2(other.double())
        for u in (-1, 0):
            for v in (-1, 0):
                mask = expected[..., u, v].real > reference[..., u, v].real
                expected[..., u, v] = torch.where(mask, 0.2 * expected[..., u, v], expected[..., u, v])
        given = safree.attenuate(own, other, 0.2)
        assert torch.allclose(given.double(), torch.fft.ifft2(expected).real, atol=1e-6)
        assert not torch.allclose(given, own, atol=1e-3)
    assert torch.equal(safree.attenuate(own, own, 0.2), own)
    flat = torch.ones(1, 1, 1, 4)
    assert torch.equal(safree.attenuate(flat, flat - 1, 0.2), flat)


def test_widths_of_stable_diffusion_and_of_small_models(pipeline):
    class Like:
        class config:
            block_out_channels = (320, 640, 1280, 1280)

    assert safree.stage_scales(Like, settings()) == {1280: 0.9, 640: 0.2}
    assert safree.stage_scales(pipeline.unet, settings()) == {64: 0.9, 32: 0.2}


def test_a_third_branch_only_while_re_attention_acts(pipeline):
    def rows(chosen):
        seen = []
        handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        images(erased(pipeline, chosen), REQUESTS[:1])
        handle.remove()
        return seen

    last = oracle(pipeline, REQUESTS[0].prompt, settings("intended", **SHORT))[2]
    assert 0 <= last < 4
    assert rows(settings(**SHORT)) == [2] * 5
    assert rows(settings("intended", **SHORT)) == [3] * (last + 1) + [2] * (4 - last)


def test_hooks_are_taken_off_again(pipeline):
    before = images(pipeline)
    images(erased(pipeline, settings("intended")))
    assert not [b for b in pipeline.unet.up_blocks if b._forward_pre_hooks]
    assert np.array_equal(images(pipeline), before)


def test_images_do_not_depend_on_the_batch(pipeline):
    used = erased(pipeline, settings("intended", **SHORT))
    whole = images(used)
    assert np.abs(images(used, REQUESTS[::-1])[::-1] - whole).max() <= 1
    single = np.concatenate([images(used, [request]) for request in REQUESTS])
    assert np.abs(single - whole).max() <= 1


def test_strength_0_is_the_pipeline_itself_and_more_changes_more(pipeline):
    assert erased(pipeline, settings(strength=0.0)) is pipeline
    base = images(pipeline)
    off = [np.abs(images(erased(pipeline, settings(strength=s))) - base).mean() for s in (0.25, 0.5, 1.0)]
    assert 0 < off[0] < off[1] < off[2]


def test_without_guidance_the_prompt_is_filtered_all_the_same(pipeline):
    plain = SAMPLER.model_copy(update={"guidance": 1.0})
    chosen = settings("intended", validate_steps=False, lone_token_triggers=True)
    assert np.abs(images(erased(pipeline, chosen), sampler=plain) - images(pipeline, sampler=plain)).max() > 5


@pytest.mark.parametrize(("fraction", "last"), [(None, 10), (0.2, 2), (0.25, 2), (0.0, 0)])
def test_steps_as_a_share_of_the_run(fraction, last):
    chosen = settings(most_fraction=fraction)
    assert safree.last_step(torch.ones(1), 8, chosen).item() == last
    assert safree.last_step(torch.zeros(1), 8, chosen).item() == 0


def test_step_0_is_always_filtered(pipeline):
    conditioning = safree.Filter(
        torch.zeros(32, 1), settings(), safree.Filtered(torch.zeros(1), torch.zeros(1))
    )
    assert [conditioning.active(Step(i, 8, 0)).item() for i in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (("gears", ""), {}, "'' has no token"),
        ((), {}, "no keywords"),
        (("gears",), {"mask_id": 10**6}, "mask_id 1000000 is no token; allowed"),
    ],
)
def test_targets_and_settings_that_cannot_be(pipeline, words, changes, message):
    with pytest.raises(ValueError, match=message):
        erased(pipeline, settings(**changes), Target((ThemeTarget("uncased", words, "robot"),)))
