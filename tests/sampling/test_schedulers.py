"""Schedulers keep the noise schedule of the checkpoint."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers import DDPMScheduler, PNDMScheduler

from palimpsest.sampling.schedulers import KINDS, build, evaluations
from tests import tiny

CONFIG = PNDMScheduler(**tiny.SCHEDULER).config


@pytest.mark.parametrize("name", KINDS)
def test_noise_schedule_is_the_checkpoints(name):
    scheduler = build(name, CONFIG, 10)
    assert type(scheduler).__name__ == KINDS[name][0]
    assert torch.equal(scheduler.betas, PNDMScheduler(**tiny.SCHEDULER).betas)
    assert scheduler.config.steps_offset == 1
    assert scheduler.config.prediction_type == "epsilon"
    assert len(scheduler.timesteps) == evaluations(name, 10)


def test_pndm_of_40_steps_evaluates_41_times():
    assert len(build("pndm", CONFIG, 40).timesteps) == evaluations("pndm", 40) == 41
    # A checkpoint saved with another scheduler does not say that the Runge-Kutta start is skipped.
    assert len(build("pndm", DDPMScheduler().config, 40).timesteps) == 41


def test_ddim_does_not_clip_and_ends_at_the_first_alpha():
    scheduler = build("ddim", DDPMScheduler().config, 10)
    assert scheduler.config.clip_sample is False
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]


def test_v_prediction_is_kept():
    config = PNDMScheduler(**{**tiny.SCHEDULER, "prediction_type": "v_prediction"}).config
    assert {build(name, config, 5).config.prediction_type for name in KINDS} == {"v_prediction"}


@pytest.mark.parametrize(
    ("name", "steps", "said"), [("heun", 10, "dpmsolver"), ("ddim", 0, "1..1000"), ("ddim", 1001, "1..1000")]
)
def test_unusable_samplers_are_refused(name, steps, said):
    with pytest.raises(ValueError, match=said):
        build(name, CONFIG, steps)
