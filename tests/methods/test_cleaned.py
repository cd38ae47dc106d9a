"""Another checkpoint in place of the experiment's, against that checkpoint loaded and sampled by itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from palimpsest import params
from palimpsest.methods import cleaned
from palimpsest.methods.contract import Artifact
from palimpsest.params import Model, Sampler
from palimpsest.runs import not_applicable, runs_of
from palimpsest.sampling import schedulers
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.load import MissingModel, load_pipeline
from palimpsest.sampling.loop import Request, decode, generate
from palimpsest.sampling.noise import initial_noise
from palimpsest.sampling.pipeline import Hook
from tests import layouts, tiny
from tests.methods.erasing import TARGET, abar

REQUESTS = [Request("a", "a robot with gears", 5), Request("b", "the house", 6)]
SAMPLER = Sampler(name="ddim", steps=4, guidance=4.0)


def contract_settings(folder, requests, images):
    """A tiny checkpoint of its own weights that makes larger images."""
    path = tiny.save(tiny.build(seed=1), folder / "checkpoint")
    return {
        "checkpoint": str(path),
        "checkpoint_revision": None,
        "architecture": "sd1",
        "parts": "all",
        "resolution": 32,
    }


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tiny.build(seed=1), tmp_path_factory.mktemp("cleaned") / "checkpoint")


def images(pipeline, resolution=16):
    made = generate(pipeline, REQUESTS, SAMPLER, resolution)
    return np.stack([g.image for g in made]).astype(int)


def applied(pipeline, folder, **settings):
    return cleaned.apply(pipeline, Artifact(), TARGET, cleaned.Settings(checkpoint=str(folder), **settings))


class Marked(Hook):
    """Counts the batches that begin."""

    def __init__(self):
        self.begun = 0

    def begin(self, conditioning):
        self.begun += 1
        return self


def test_all_parts_are_the_checkpoints_and_hooks_stay(pipeline, folder):
    hook = Marked()
    before = images(pipeline)
    made = images(applied(pipeline.with_hook(hook), folder))
    assert hook.begun == 1
    assert np.array_equal(made, images(load_pipeline(Model(path=str(folder), resolution=16))))
    assert np.abs(made - before).max() > 5
    assert np.array_equal(images(pipeline), before)


def test_a_lone_unet_leaves_the_other_parts_as_they_are(pipeline, folder, tmp_path):
    shutil.copytree(folder / "unet", tmp_path / "unet")
    used = applied(pipeline, tmp_path, parts="unet")
    assert (used.vae, used.text_encoder, used.tokenizer, used.scheduler) == (
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.scheduler,
    )
    own = load_pipeline(Model(path=str(folder), resolution=16)).unet
    assert np.array_equal(images(used), images(replace(pipeline, unet=own)))
    assert not any(p.requires_grad for p in used.unet.parameters())


def test_images_of_its_own_size_are_scaled_to_the_experiments(pipeline, folder):
    large = images(load_pipeline(Model(path=str(folder), resolution=32)), 32)
    small = images(applied(pipeline, folder, resolution=32))
    expected = [Image.fromarray(i.astype(np.uint8)).resize((16, 16), Image.Resampling.LANCZOS) for i in large]
    assert small.shape == (2, 16, 16, 3)
    assert np.array_equal(small, np.stack([np.asarray(i) for i in expected]).astype(int))
    assert np.array_equal(images(applied(pipeline, folder, resolution=16)), images(applied(pipeline, folder)))


def velocity_oracle(parts, request):
    """DDIM without noise (Song et al. 2021, equation 12) on v = sqrt(abar) noise - sqrt(1 - abar) x (Salimans and Ho 2022), written out.

    Four steps of a leading schedule with offset 1: timesteps 751, 501, 251, 1; the last goes to the noise level of timestep 0.
    """
    levels = abar()
    text, empty = encode(parts, [request.prompt]), encode(parts, [""])
    x = initial_noise(request.seed, (1, 4, 8, 8)).double()
    for now in (751, 501, 251, 1):
        with torch.no_grad():
            away, towards = (parts.unet(x.float(), now, e).sample.double() for e in (empty, text))
        v = away + 4.0 * (towards - away)
        a, later = levels[now], levels[max(now - 250, 0)]
        clean = a**0.5 * x - (1 - a) ** 0.5 * v
        noise = a**0.5 * v + (1 - a) ** 0.5 * x
        x = later**0.5 * clean + (1 - later) ** 0.5 * noise
    return decode(parts, x.float())[0].numpy().astype(int)


def test_a_checkpoint_that_predicts_velocity_is_sampled_as_one(pipeline, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "v")
    config = tmp_path / "v/scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"}))
    made = images(applied(pipeline, tmp_path / "v"))
    parts = load_pipeline(Model(path=str(folder), resolution=16))
    expected = np.stack([velocity_oracle(parts, request) for request in REQUESTS])
    assert np.abs(made - expected).max() <= 1
    assert np.abs(made - images(applied(pipeline, folder))).max() > 5


def test_the_papers_row_works_beside_a_model_of_another_architecture(pipeline, tmp_path):
    """experiments/paper.yaml: Stable Diffusion v2.1 makes larger images, from its own scheduler's velocity, for the sampler of v1.4."""
    from diffusers import StableDiffusionPipeline

    paper = params.load("params.yaml", "experiments/paper.yaml")
    row = next(run for run in runs_of(paper, Path("methods")) if run.module.endswith(".cleaned"))
    assert not_applicable(paper, row) is None
    assert (paper.model.architecture, row.settings["architecture"], row.settings["parts"]) == (
        "sd1",
        "sd2",
        "all",
    )
    here = {"checkpoint": str(layouts.sd2(tmp_path / "sd2")), "checkpoint_revision": None, "resolution": 32}
    sampler = row.sampler.model_copy(update={"steps": 4})
    used = cleaned.apply(pipeline, Artifact(), TARGET, cleaned.Settings(**{**row.settings, **here}))
    made = np.stack([g.image for g in generate(used, REQUESTS, sampler, 16)]).astype(int)
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "sd2")
    assert theirs.scheduler.config.prediction_type == "v_prediction"
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = schedulers.build(sampler.name, theirs.scheduler.config, 4)
    noise = torch.stack([initial_noise(r.seed, (4, 16, 16)) for r in REQUESTS])
    call = {"num_inference_steps": 4, "guidance_scale": sampler.guidance, "height": 32, "width": 32}
    large = theirs([r.prompt for r in REQUESTS], latents=noise, output_type="np", **call).images
    pictures = [Image.fromarray((image * 255).round().astype(np.uint8)) for image in large]
    expected = np.stack([np.asarray(p.resize((16, 16), Image.Resampling.LANCZOS)) for p in pictures])
    assert sampler.name == "pndm" and made.std() > 5
    assert np.abs(made - expected.astype(int)).max() <= 1


def test_a_lone_unet_that_predicts_something_else_is_refused(pipeline, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "v")
    config = tmp_path / "v/scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(
        ValueError, match=r"predicts 'v_prediction', the experiment's scheduler takes 'epsilon'.*parts: all"
    ):
        applied(pipeline, tmp_path / "v", parts="unet")


def test_a_unet_of_another_width_is_refused(pipeline, folder, tmp_path):
    from diffusers.models import UNet2DConditionModel

    config = dict(pipeline.unet.config) | {"cross_attention_dim": 48}
    UNet2DConditionModel.from_config(config).save_pretrained(tmp_path / "unet")
    with pytest.raises(
        ValueError, match=r"cross_attention_dim is 48, the experiment's model has 32.*parts: all"
    ):
        applied(pipeline, tmp_path, parts="unet")


def test_what_is_not_there_is_named_with_the_setting(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        MissingModel, match=r"checkpoint: 'nobody/nothing' is neither.*hf download nobody/nothing"
    ):
        applied(pipeline, "nobody/nothing")
    with pytest.raises(MissingModel, match=r"checkpoint: .*nowhere is no folder"):
        applied(pipeline, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingModel, match=r"unet/ missing"):
        applied(pipeline, tmp_path / "empty", parts="unet")


def test_a_lone_unet_has_no_size_of_its_own():
    with pytest.raises(ValidationError, match="a UNet alone makes the experiment's size"):
        cleaned.Settings(checkpoint="x", parts="unet", resolution=32)
