"""The sampling loop against diffusers, its invariances, and the places where hooks act."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from palimpsest.params import Sampler
from palimpsest.sampling import schedulers
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.loop import Request, decode, generate, latent_shape
from palimpsest.sampling.noise import initial_noise
from palimpsest.sampling.pipeline import Decision, Hook
from tests import tiny

WORDS = ("a robot", "red house", "", "blue lamp on the tree", "gears", "a photo of static", "crack")
REQUESTS = [Request(f"r{i}", prompt, 100 + i) for i, prompt in enumerate(WORDS)]


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def sampler(name="ddim", steps=4, guidance=5.0, **rest):
    return Sampler(name=name, steps=steps, guidance=guidance, **rest)


def images(pipeline, requests=REQUESTS, settings=None):
    return np.stack([g.image for g in generate(pipeline, requests, settings or sampler(), 16)])


def apart(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpmsolver++"])
def test_images_are_those_of_diffusers(pipeline, name):
    from diffusers import StableDiffusionPipeline

    parts = {n: getattr(pipeline, n) for n in ("unet", "vae", "text_encoder", "tokenizer")}
    theirs = StableDiffusionPipeline(
        **parts,
        scheduler=schedulers.build(name, pipeline.scheduler.config, 8),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    noise = torch.stack([initial_noise(r.seed, (4, 8, 8)) for r in REQUESTS])
    call = {"num_inference_steps": 8, "guidance_scale": 5.0, "height": 16, "width": 16, "output_type": "np"}
    expected = theirs([r.prompt for r in REQUESTS], latents=noise, **call).images
    ours = images(pipeline, settings=sampler(name, 8)) / 255
    assert ours.std() > 0.1
    assert np.abs(ours - expected).max() <= 1 / 255


@pytest.mark.first_case
@pytest.mark.parametrize("name", ["ddim", "pndm", "dpmsolver++", "lms", "euler"])
def test_an_image_does_not_depend_on_batch_order_or_shard(pipeline, name):
    whole = images(pipeline, settings=sampler(name))
    assert apart(images(pipeline, settings=sampler(name)), whole) == 0
    assert apart(images(pipeline, settings=sampler(name, batch=1)), whole) <= 1
    assert apart(images(pipeline, settings=sampler(name, batch=3)), whole) <= 1
    assert apart(images(pipeline, REQUESTS[::-1], sampler(name))[::-1], whole) <= 1
    shards = [images(pipeline, part, sampler(name)) for part in (REQUESTS[:2], REQUESTS[2:])]
    assert apart(np.concatenate(shards), whole) <= 1


def test_prompts_and_seeds_change_images(pipeline):
    first = images(pipeline, [Request("a", "a robot", 1)])
    assert apart(first, images(pipeline, [Request("a", "red house", 1)])) > 20
    assert apart(first, images(pipeline, [Request("a", "a robot", 2)])) > 20


def test_without_guidance_only_the_prompt_is_evaluated(pipeline):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    plain = images(pipeline, REQUESTS[:2], sampler(guidance=1.0))
    guided = images(pipeline, REQUESTS[:2], sampler(guidance=1.5))
    handle.remove()
    assert seen == [2] * 4 + [4] * 4
    assert apart(plain, guided) > 0


def test_bfloat16_is_close_and_leaves_the_pipeline_in_float32(pipeline):
    full, half = images(pipeline), images(pipeline, settings=sampler(dtype="bfloat16"))
    assert 0 < np.abs(full.astype(int) - half).mean() < 12
    assert pipeline.unet.dtype == torch.float32


def test_resolutions_the_checkpoint_cannot_make_are_refused(pipeline):
    assert latent_shape(pipeline, 16) == (4, 8, 8)
    with pytest.raises(ValueError, match="multiple of 4"):
        latent_shape(pipeline, 18)


def test_decoding_in_slices_changes_nothing(pipeline, monkeypatch):
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = decode(pipeline, latents)
    monkeypatch.setattr("palimpsest.sampling.loop.DECODED_PIXELS", 2 * 16 * 16)
    assert whole.dtype == torch.uint8
    assert whole.shape == (5, 16, 16, 3)
    assert apart(decode(pipeline, latents).numpy(), whole.numpy()) <= 1


def test_no_requests_no_images(pipeline):
    assert list(generate(pipeline, [], sampler(), 16)) == []


# --- hooks ---


class Guard(Hook):
    """Blocks prompts with one word and rewrites another."""

    def guard(self, prompts):
        answers = {
            "gears": Decision("blocked_prompt", "no gears"),
            "crack": Decision("rewritten", "safer", "a house"),
        }
        return [answers.get(prompt, Decision("allowed")) for prompt in prompts]


def test_guards_block_and_rewrite(pipeline):
    made = list(generate(pipeline.with_hook(Guard()), REQUESTS, sampler(batch=4), 16))
    assert [g.image_id for g in made] == [r.image_id for r in REQUESTS]
    assert [g.prompt for g in made] == list(WORDS)
    assert [g.decision for g in made] == ["generated"] * 4 + ["blocked_prompt", "generated", "rewritten"]
    assert made[4].image is None
    assert made[4].reason == "no gears"
    assert made[6].reason == "safer; sampled as: a house"
    plain = images(pipeline, [*REQUESTS[:4], REQUESTS[5], Request("x", "a house", REQUESTS[6].seed)])
    assert apart(np.stack([g.image for g in made if g.image is not None]), plain) <= 1


def test_a_batch_that_is_blocked_whole_costs_no_evaluation(pipeline):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(1))
    made = list(generate(pipeline.with_hook(Guard()), [Request("a", "gears", 0)], sampler(), 16))
    handle.remove()
    assert [g.decision for g in made] == ["blocked_prompt"]
    assert not seen


class NoPrompt(Hook):
    def guard(self, prompts):
        return [Decision("rewritten") for _ in prompts]


def test_a_rewrite_without_a_prompt_is_an_error(pipeline):
    with pytest.raises(ValueError, match=r"NoPrompt\.guard rewrote 'a robot'"):
        images(pipeline.with_hook(NoPrompt()), REQUESTS[:1])


class Stop(Hook):
    """Stops some samples after step 1."""

    def __init__(self, rows):
        self.rows = rows

    def after_step(self, step, latents):
        return latents, {row: f"stopped at {step.index}" for row in self.rows if step.index >= 1}


def test_stopped_samples_have_no_image_and_do_not_disturb_others(pipeline):
    made = list(generate(pipeline.with_hook(Stop([0, 2])), REQUESTS, sampler(), 16))
    assert [g.decision for g in made] == ["aborted", "generated", "aborted"] + ["generated"] * 4
    assert made[0].reason == "stopped at 1"
    assert made[0].image is None
    kept = [i for i in range(7) if i not in (0, 2)]
    assert apart(np.stack([made[i].image for i in kept]), images(pipeline)[kept]) == 0


def test_the_loop_ends_when_all_are_stopped(pipeline):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(1))
    made = list(generate(pipeline.with_hook(Stop([0, 1])), REQUESTS[:2], sampler(steps=9), 16))
    handle.remove()
    assert len(seen) == 2
    assert {g.decision for g in made} == {"aborted"}


class Edit(Hook):
    """Turns the second image black."""

    def edit(self, images, prompts):
        images = images.clone()
        images[1] = 0
        return images, {1: f"black: {prompts[1]}"}


def test_edits_are_recorded(pipeline):
    made = list(generate(pipeline.with_hook(Edit()), REQUESTS[:3], sampler(), 16))
    assert [g.decision for g in made] == ["generated", "edited", "generated"]
    assert made[1].reason == "black: red house"
    assert made[1].image.max() == 0
    assert apart(np.stack([made[0].image, made[2].image]), images(pipeline, REQUESTS[:3])[[0, 2]]) == 0


class Watch(Hook):
    """Notes the steps, and halves what the UNet predicts while it is evaluated."""

    def __init__(self):
        self.steps = []

    @contextmanager
    def around(self, unet, step):
        self.steps.append((step.index, step.count, step.branches))
        handle = unet.register_forward_hook(lambda module, args, output: (output[0] * 0.5,))
        yield
        handle.remove()


def test_module_hooks_know_the_step_and_are_taken_off_again(pipeline):
    before, watch = images(pipeline), Watch()
    assert (
        apart(
            images(pipeline.with_hook(watch), settings=sampler("pndm")),
            images(pipeline, settings=sampler("pndm")),
        )
        > 5
    )
    assert watch.steps == [(i, 5, ("uncond", "cond")) for i in range(5)]
    assert apart(images(pipeline), before) == 0


class Later(Hook):
    """From step 2 on the prompt is another one, and at step 1 a branch is there that nobody asked for."""

    def __init__(self, pipeline, prompt):
        self.text, self.seen = encode(pipeline, [prompt]), []

    def states(self, step, branches):
        self.seen.append((step.index, step.branches))
        if step.index < 1:
            return branches
        text = self.text.expand_as(branches["cond"])
        return {**branches, "extra": text} if step.index == 1 else {**branches, "cond": text}

    @contextmanager
    def around(self, unet, step):
        self.seen.append(step.branches)
        yield


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_embeddings_may_change_with_the_step(pipeline, guidance):
    request, later = Request("a", "a robot", 3), Later(pipeline, "red house")
    made = images(pipeline.with_hook(later), [request], sampler(guidance=guidance))[0]
    scheduler = schedulers.build("ddim", pipeline.scheduler.config, 4)
    latents = initial_noise(request.seed, (1, 4, 8, 8))
    empty, first, last = (encode(pipeline, [text]) for text in ("", "a robot", "red house"))
    for index, timestep in enumerate(scheduler.timesteps):
        with torch.no_grad():
            cond = pipeline.unet(latents, timestep, first if index < 2 else last).sample
            uncond = pipeline.unet(latents, timestep, empty).sample
        noise = cond if guidance == 1 else uncond + guidance * (cond - uncond)
        latents = scheduler.step(noise, timestep, latents).prev_sample
    assert apart(made, decode(pipeline, latents)[0].numpy()) <= 1
    assert apart(made, images(pipeline, [request], sampler(guidance=guidance))[0]) > 5
    names = ("cond",) if guidance == 1 else ("uncond", "cond")
    steps = [[(i, names), (*names, "extra") if i == 1 else names] for i in range(4)]
    assert later.seen == [entry for step in steps for entry in step]


def test_embeddings_that_stay_are_stacked_once(pipeline, monkeypatch):
    from palimpsest.sampling import loop

    calls, original = [], loop.stacked
    monkeypatch.setattr(loop, "stacked", lambda *given: calls.append(1) or original(*given))
    images(pipeline.with_hook(Watch()), REQUESTS[:2])
    assert len(calls) == 1
