"""SLD against a scalar loop written from the official code's description, and its borderline cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.methods import registry, sld
from palimpsest.methods.contract import Artifact, Target, ThemeTarget
from palimpsest.params import Sampler
from palimpsest.sampling import schedulers
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.loop import Request, decode, generate
from palimpsest.sampling.noise import initial_noise
from palimpsest.sampling.pipeline import Conditioning, Step
from tests import tiny
from tests.methods.erasing import TARGET

PRESETS = ["weak", "medium", "strong", "max"]
REQUESTS = [Request("a", "a robot with gears", 5), Request("b", "the house", 6)]
SAMPLER = Sampler(name="pndm", steps=5, guidance=4.0)


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def settings(preset, **changes):
    return registry.settings("sld", preset, changes)


def images(pipeline, sampler=SAMPLER):
    return np.stack([g.image for g in generate(pipeline, REQUESTS, sampler, 16)]).astype(int)


def erased(pipeline, chosen, target=TARGET):
    return sld.apply(pipeline, Artifact(), target, chosen)


def scalar_step(eu, ep, es, nu, index, w, s):
    """One element of one step, in Python floats: (guided prediction, new momentum)."""
    phi = min(abs(ep - es) * s.guidance_scale, 1.0)
    mu = 0.0 if ep - es >= s.threshold else phi
    gamma = mu * (es - eu) + s.momentum_scale * nu
    new = s.momentum_beta * nu + (1 - s.momentum_beta) * gamma
    g = ep - eu
    if index >= s.warmup:
        g -= gamma * s.strength
    return eu + w * g, new


def test_the_published_configurations():
    rows = [settings(p) for p in PRESETS]
    assert [r.warmup for r in rows] == [15, 10, 7, 0]
    assert [r.guidance_scale for r in rows] == [20, 1000, 2000, 5000]
    assert [r.threshold for r in rows] == [0, 0.01, 0.025, 1]
    assert [r.momentum_scale for r in rows] == [0, 0.3, 0.5, 0.5]
    assert [r.momentum_beta for r in rows] == [0, 0.4, 0.7, 0.7]
    assert settings("medium") == sld.Settings()


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("preset", PRESETS)
def test_steps_equal_a_scalar_loop(preset, strength):
    chosen = settings(preset, strength=strength, **({"warmup": 2} if preset != "max" else {}))
    generator = torch.Generator().manual_seed(1)
    shape, w = (2, 4, 3, 3), 7.5
    hook = sld.SafetyGuidance("x", chosen).begin(Conditioning((), {}, torch.zeros(shape)))
    momenta = [0.0] * 72
    for index in range(5):
        # Small differences, so that mu is often neither 0 nor 1 and lies on both sides of the thresholds.
        ep = torch.randn(shape, generator=generator, dtype=torch.float64)
        es = ep + 0.03 * torch.randn(shape, generator=generator, dtype=torch.float64)
        eu = torch.randn(shape, generator=generator, dtype=torch.float64)
        step = Step(index, 5, torch.tensor(0), ("uncond", "cond", "safety"))
        given = hook.guide(step, {"uncond": eu, "cond": ep, "safety": es}, torch.zeros(shape), w)
        flat = zip(eu.flatten().tolist(), ep.flatten().tolist(), es.flatten().tolist(), momenta, strict=True)
        results = [scalar_step(u, p, s, nu, index, w, chosen) for u, p, s, nu in flat]
        momenta = [nu for _, nu in results]
        expected = torch.tensor([e for e, _ in results], dtype=torch.float64).view(shape)
        given = eu + w * (ep - eu) if given is None else given
        assert torch.allclose(given, expected, rtol=0, atol=1e-12)
        assert torch.allclose(
            hook.momentum.flatten(), torch.tensor(momenta, dtype=torch.float64), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("preset", PRESETS)
def test_images_equal_a_loop_of_one_image(pipeline, preset):
    # Warm-up is counted in steps of a run of 50; here there are five.
    chosen = settings(preset, **({"warmup": 2} if preset != "max" else {}))
    concept = encode(pipeline, ["gears, gear on a robot, blue gear, crack, static"])
    given = images(erased(pipeline, chosen))
    for row, request in enumerate(REQUESTS):
        texts = torch.cat([encode(pipeline, [""]), encode(pipeline, [request.prompt]), concept])
        scheduler = schedulers.build("pndm", pipeline.scheduler.config, 5)
        latents, nu = initial_noise(request.seed, (1, 4, 8, 8)), [0.0] * 256
        for index, timestep in enumerate(scheduler.timesteps):
            with torch.no_grad():
                noise = pipeline.unet(latents.repeat(3, 1, 1, 1), timestep, texts).sample.flatten(1).tolist()
            results = [scalar_step(*e, n, index, 4.0, chosen) for *e, n in zip(*noise, nu, strict=True)]
            nu = [n for _, n in results]
            guided = torch.tensor([e for e, _ in results]).view(1, 4, 8, 8)
            latents = scheduler.step(guided, timestep, latents).prev_sample
        assert index == 5  # PNDM evaluates once more than its steps, and SLD counts that
        assert np.abs(given[row] - decode(pipeline, latents)[0].numpy()).max() <= 1
    assert np.abs(given - images(pipeline)).max() > (0 if preset == "weak" else 5)


def test_the_threshold_is_compared_with_the_sign():
    eu, ep, es = torch.zeros(2), torch.tensor([-0.5, 0.5]), torch.zeros(2) + 0.0
    es = es + torch.tensor([0.1, 0.1])
    gamma, _ = sld.safety_term(eu, ep, es, torch.zeros(2), settings("weak"))
    assert gamma[0] == pytest.approx(0.1)
    assert gamma[1] == 0
    both, _ = sld.safety_term(eu, ep, es, torch.zeros(2), settings("max"))
    assert both.tolist() == pytest.approx([0.1, 0.1])  # a threshold of 1 lets nearly everything through


def test_momentum_builds_up_during_warmup():
    hook = sld.SafetyGuidance("x", settings("medium")).begin(Conditioning((), {}, torch.zeros(1)))
    noise = {
        "uncond": torch.zeros(1, 1, 1, 1),
        "cond": -torch.ones(1, 1, 1, 1),
        "safety": torch.ones(1, 1, 1, 1),
    }
    assert hook.guide(Step(0, 20, 0), noise, torch.zeros(1), 5.0) is None
    assert hook.momentum.item() == pytest.approx(0.6)


def test_batches_do_not_share_momentum(pipeline):
    hook = sld.SafetyGuidance("x", settings("max"))
    first = hook.begin(Conditioning((), {}, torch.zeros(1)))
    first.momentum = torch.ones(1)
    assert hook.momentum is None
    assert hook.begin(Conditioning((), {}, torch.zeros(1))).momentum is None


@pytest.mark.parametrize(
    "changes", [{"guidance_scale": 0.0}, {"warmup": 6}, {"warmup": 1000}, {"strength": 0.0}]
)
def test_switched_off_it_is_plain_guidance_bit_for_bit(pipeline, changes):
    assert np.array_equal(images(erased(pipeline, settings("max", **changes))), images(pipeline))


def test_the_last_step_counts(pipeline):
    chosen = settings("max", warmup=5)  # of the six evaluations of five PNDM steps
    assert np.abs(images(erased(pipeline, chosen)) - images(pipeline)).max() > 0


def test_an_empty_concept_steers_nothing(pipeline):
    empty = Target((ThemeTarget("nothing", ("",), "robot"),))
    assert np.abs(images(erased(pipeline, settings("max"), empty)) - images(pipeline)).max() <= 1


def test_nothing_happens_without_guidance(pipeline):
    plain = Sampler(name="ddim", steps=3, guidance=1.0)
    assert np.array_equal(images(erased(pipeline, settings("max")), plain), images(pipeline, plain))


def test_three_branches_go_through_one_call(pipeline):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    images(erased(pipeline, settings("max")))
    handle.remove()
    assert seen == [6] * 6


def test_the_prefix_belongs_to_the_concept(pipeline):
    plain, prefixed = (erased(pipeline, settings("max", concept_prefix=p)) for p in ("", "a photo of "))
    assert prefixed.hooks[0].text == "a photo of " + plain.hooks[0].text
    assert np.abs(images(plain) - images(prefixed)).max() > 0


@pytest.mark.parametrize(
    ("fraction", "count", "first"), [(None, 12, 10), (0.2, 50, 10), (0.2, 12, 3), (0, 12, 0), (1, 12, 12)]
)
def test_warmup_as_a_share_of_the_steps(fraction, count, first):
    assert sld.first_active(settings("medium", warmup_fraction=fraction), count) == first
