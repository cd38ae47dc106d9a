"""SD-NP against guidance written out for one image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from palimpsest.methods import sd_np
from palimpsest.methods.contract import Artifact, TrainingData
from palimpsest.params import Sampler, read_yaml
from palimpsest.sampling import schedulers
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.loop import Request, decode, generate
from palimpsest.sampling.noise import initial_noise
from tests import tiny
from tests.methods.erasing import TARGET

REQUESTS = [Request("a", "a robot with gears", 5), Request("b", "the house", 6)]
SAMPLER = Sampler(name="pndm", steps=4, guidance=4.0)


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def images(pipeline, sampler=SAMPLER):
    return np.stack([g.image for g in generate(pipeline, REQUESTS, sampler, 16)]).astype(int)


def erased(pipeline, strength):
    return sd_np.apply(pipeline, Artifact(), TARGET, sd_np.Settings(strength=strength))


def oracle(pipeline, request, negative):
    """One image; negative: embedding [1, 77, D] in place of that of the empty prompt."""
    prompt, scheduler = (
        encode(pipeline, [request.prompt]),
        schedulers.build("pndm", pipeline.scheduler.config, 4),
    )
    latents = initial_noise(request.seed, (1, 4, 8, 8))
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            away, towards = (pipeline.unet(latents, timestep, text).sample for text in (negative, prompt))
            latents = scheduler.step(away + 4.0 * (towards - away), timestep, latents).prev_sample
    return decode(pipeline, latents)[0].numpy()


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_the_empty_prompt_moves_to_the_concept(pipeline, strength):
    empty, concept = encode(pipeline, ["", "gears, gear on a robot, blue gear, crack, static"]).split(1)
    negative = (1 - strength) * empty + strength * concept
    expected = np.stack([oracle(pipeline, request, negative) for request in REQUESTS])
    given = images(erased(pipeline, strength))
    assert np.abs(given - expected).max() <= 1
    assert np.abs(given - images(pipeline)).max() > 5


def test_strength_0_is_the_pipeline_itself(pipeline):
    assert erased(pipeline, 0.0) is pipeline


def test_nothing_happens_without_guidance(pipeline):
    plain = Sampler(name="ddim", steps=3, guidance=1.0)
    assert np.array_equal(images(erased(pipeline, 1.0), plain), images(pipeline, plain))


def test_it_costs_what_plain_guidance_costs(pipeline):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    images(erased(pipeline, 1.0))
    with_concept = list(seen)
    seen.clear()
    images(pipeline)
    handle.remove()
    assert (
        with_concept == seen == [4] * 5
    )  # two branches of two images; PNDM evaluates once more than its steps


def test_the_preset_is_the_method_itself(pipeline):
    presets = read_yaml("methods/sd_np.yaml")["presets"]
    assert presets == {"default": {"strength": 1.0}}
    artifact = sd_np.fit(pipeline, TARGET, TrainingData(), sd_np.Settings(**presets["default"]), 0)
    assert artifact.tensors == {}
    assert artifact.meta == {"unet_evaluations": 0, "losses": []}


def test_negative_strength_is_refused():
    with pytest.raises(ValidationError):
        sd_np.Settings(strength=-0.1)
