"""Partial denoising: a batch with a stop per sample equals samples denoised alone by a plain loop."""

from __future__ import annotations

import pytest
import torch

from palimpsest.params import Sampler
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.schedulers import build
from palimpsest.sampling.trajectory import partial_denoise
from tests import tiny


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


@pytest.fixture(scope="module")
def inputs(pipeline):
    texts = encode(pipeline, ["", "a robot", "gears", "crack", "a red house", "static"])
    return texts[1:], texts[:1], torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def alone(pipeline, name, cond, uncond, noise, stop, guidance, start=0):
    scheduler = build(name, pipeline.scheduler.config, 6)
    latents = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for timestep in scheduler.timesteps[start : start + stop]:
            scaled = scheduler.scale_model_input(latents, timestep)
            empty, full = (pipeline.unet(scaled, timestep, text).sample for text in (uncond, cond))
            latents = scheduler.step(empty + guidance * (full - empty), timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize("name", ["ddim", "pndm", "lms", "euler", "dpmsolver++"])
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_batch_with_stops_equals_samples_alone(pipeline, inputs, name, guidance):
    cond, uncond, noise = inputs
    last = len(build(name, pipeline.scheduler.config, 6).timesteps)
    stops = [3, 0, last, 1, 3]
    sampler = Sampler(name=name, steps=6, guidance=guidance, batch=3)
    together = partial_denoise(pipeline, cond, uncond, noise, stops, sampler)
    for row, stop in enumerate(stops):
        one = slice(row, row + 1)
        expected = alone(pipeline, name, cond[one], uncond, noise[one], stop, guidance)
        assert torch.allclose(together[one], expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_start_skips_the_first_timesteps(pipeline, inputs, name):
    cond, uncond, noise = (part[:1] for part in inputs)
    given = partial_denoise(
        pipeline, cond, uncond, noise, [4], Sampler(name=name, steps=6, guidance=3.0), start=1
    )
    expected = alone(pipeline, name, cond, uncond, noise, 4, 3.0, start=1)
    assert torch.allclose(given, expected, atol=1e-5 * float(expected.abs().max()))
    whole = partial_denoise(pipeline, cond, uncond, noise, [4], Sampler(name=name, steps=6, guidance=3.0))
    assert not torch.allclose(given, whole, atol=1e-2)


def test_no_step_gives_the_noise_back(pipeline, inputs):
    cond, uncond, noise = inputs
    given = partial_denoise(
        pipeline, cond, uncond, noise, [0, 0, 0, 2, 0], Sampler(name="ddim", steps=5, guidance=3.0)
    )
    assert torch.equal(given[[0, 1, 2, 4]], noise[[0, 1, 2, 4]])
    assert (given[3] - noise[3]).abs().max() > 0.01


@pytest.mark.parametrize(("stops", "start"), [([0, 1, 2, 3, 5], 1), ([-1, 0, 0, 0, 0], 0), ([1], 0)])
def test_impossible_stops_are_refused(pipeline, inputs, stops, start):
    with pytest.raises(ValueError, match="stop_steps"):
        partial_denoise(pipeline, *inputs, stops, Sampler(name="ddim", steps=5, guidance=3.0), start)


@pytest.mark.parametrize(("guidance", "branches"), [(3.0, 2), (1.0, 1)])
def test_stopped_samples_cost_nothing(pipeline, inputs, guidance, branches):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    partial_denoise(pipeline, *inputs, [3, 0, 5, 1, 3], Sampler(name="ddim", steps=5, guidance=guidance))
    handle.remove()
    assert sum(seen) == branches * (3 + 0 + 5 + 1 + 3)
