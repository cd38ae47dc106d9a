"""Pictures drawn again by the denoiser: another picture of the same scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from palimpsest.world import redraw
from palimpsest.world.render import render_all

MICRO = Path(__file__).parents[2] / "models/micro"


def test_captions_say_nothing_that_the_scene_does_not_show():
    styles = {redraw.captioned(np.random.default_rng(seed)).style for seed in range(300)}
    assert "implicit" not in styles and {"plain", "direct"} <= styles


def test_a_picture_drawn_again_is_changed_and_still_that_picture():
    pipeline = redraw.pipeline_of(
        MICRO / "stable-diffusion/vae", MICRO / "clip", MICRO / "stable-diffusion/unet"
    )
    scenes, images = redraw.redrawn(pipeline, 6, seed=3)
    assert scenes == redraw.scenes(6, seed=3)
    renders = render_all(scenes).astype(float)
    apart = np.abs(images[:, None].astype(float) - renders[None]).mean(axis=(2, 3, 4))
    assert (apart.argmin(axis=1) == np.arange(6)).all()
    assert (np.diag(apart) > 0.5).all()
