"""Checkpoints that predict the velocity v = sqrt(abar) noise - sqrt(1 - abar) x (Salimans and Ho 2022): fine-tuning against oracles
written from the formulas, on the layout of Stable Diffusion v2.1; and what acts on noise in sampling makes the images it makes of noise.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from palimpsest.methods import _anchors, ac, erasediff, esd, salun, sd_np, selfd, sld
from palimpsest.methods._training import generator
from palimpsest.methods.contract import Artifact, TrainingData
from palimpsest.params import Model, Sampler, read_yaml
from palimpsest.sampling.load import load_pipeline
from palimpsest.sampling.loop import Request, generate
from tests import layouts, tiny
from tests.methods.erasing import (
    TARGET,
    Adam,
    abar,
    assert_same_edit,
    clipped,
    safe_images,
)
from tests.methods.relabelling import Formulas, gradient, image_sets, whole

SEED = 5


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = layouts.sd2(tmp_path_factory.mktemp("velocity") / "sd2")
    return load_pipeline(Model(path=str(folder), resolution=16, architecture="sd2"))


def text(pipeline, prompt):
    """Embedding [1, 77, D] of a prompt that is filled up with token 0."""
    with torch.no_grad():
        ids = pipeline.tokenizer(prompt)["input_ids"]
        return pipeline.text_encoder(torch.tensor([ids + [0] * (77 - len(ids))])).last_hidden_state


class Texts(Formulas):
    """The losses of relabelling with this checkpoint's padding."""

    def text(self, prompt):
        return text(self.pipeline, prompt)


def velocity_ddim(unet, x, cond, uncond, steps, stops):
    """DDIM without noise in v, guidance 3, from the largest of `steps` evenly spaced timesteps from 1 on."""
    levels, apart = abar(), 1000 // steps
    with torch.no_grad():
        for now in [1 + apart * k for k in range(steps)][::-1][:stops]:
            told = torch.tensor([now])
            empty, full = unet(x, told, uncond).sample, unet(x, told, cond).sample
            v = empty + 3.0 * (full - empty)
            a, later = levels[now], levels[max(now - apart, 0)]
            clean, noise = a**0.5 * x - (1 - a) ** 0.5 * v, a**0.5 * v + (1 - a) ** 0.5 * x
            x = later**0.5 * clean + (1 - later) ** 0.5 * noise
    return x


def esd_settings():
    preset = read_yaml("methods/esd.yaml")["presets"]["x_compvis"]
    quick = {"iterations": 3, "batch_size": 2, "steps": 5, "learning_rate": 1e-5, "concept_mode": "sample"}
    return esd.Settings(**{**preset, **quick, "stop_rule": "exact", "scheduler": "ddim"})


def trainable(unet, names):
    student = copy.deepcopy(unet)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in names)
    return student, dict(student.named_parameters())


def stepped(own, names, adam, gradients):
    for name, value in adam.update({name: own[name].detach() for name in names}, gradients).items():
        own[name].data.copy_(value)


def esd_oracle(pipeline, settings, names, draws):
    student, own = trainable(pipeline.unet, names)
    words = [word for theme in TARGET.themes for word in theme.keywords]
    empty, losses, adam = text(pipeline, ""), [], Adam(settings.learning_rate)
    for update in range(settings.iterations):
        total = 0.0
        for row in range(settings.batch_size):
            concept, told = (
                text(pipeline, words[draws.concepts[update, row]]),
                draws.timesteps[update, row][None],
            )
            noise = torch.randn(
                1, 4, 8, 8, generator=torch.Generator().manual_seed(int(draws.seeds[update, row]))
            )
            stops = int(draws.stops[update, row])
            x = velocity_ddim(student, noise, concept, empty, settings.steps, stops)
            # The target is written in noise and turned into a velocity: what ESD says is said of noise.
            a = abar()[int(told)]
            with torch.no_grad():
                e_empty, e_concept = (
                    a**0.5 * pipeline.unet(x, told, c).sample + (1 - a) ** 0.5 * x for c in (empty, concept)
                )
            target = e_empty - settings.negative_guidance * (e_concept - e_empty)
            wanted = (target - (1 - a) ** 0.5 * x) / a**0.5
            total = total + ((student(x, told, concept).sample - wanted) ** 2).mean() / settings.batch_size
        losses.append(total.item())
        student.zero_grad()
        total.backward()
        stepped(own, names, adam, {name: own[name].grad for name in names})
    return losses, {name: own[name].detach() for name in names}


def test_esd_trains_on_the_guided_velocity(pipeline):
    settings = esd_settings()
    artifact = esd.fit(pipeline, TARGET, TrainingData(), settings, SEED)
    timesteps = torch.tensor([801, 601, 401, 201, 1])
    draws = esd.draw(settings, 5, timesteps, 1000, generator(SEED, "esd"))
    losses, weights = esd_oracle(pipeline, settings, list(artifact.tensors), draws)
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-4)
    assert_same_edit(artifact.tensors, weights, pipeline.unet.state_dict())


def ac_settings(**values):
    preset = read_yaml("methods/ac.yaml")["presets"]["style"]
    quick = {
        "iterations": 3,
        "batch_size": 3,
        "learning_rate": 1e-5,
        "scale_lr": False,
        "detach_start": False,
    }
    return ac.Settings(**{**preset, **quick, **values})


def ac_oracle(pipeline, settings, names):
    fields = ("insertion", "iterations", "batch_size", "hflip", "noaug", "prior_preservation")
    recipe = _anchors.Recipe(**settings.model_dump(include=set(fields)), train_timesteps=1000)
    draws = _anchors.draw_items(_anchors.anchors(TARGET, safe_images()), recipe, generator(SEED, "ac"))
    student, own = trainable(pipeline.unet, names)
    images = np.concatenate([part.images for part in safe_images().sets])
    adam, losses = Adam(settings.step_size, settings.weight_decay), []
    for items in draws:
        total = 0.0
        for place, item in enumerate(items):
            picture = np.ascontiguousarray(images[item.anchor][:, ::-1] if item.flip else images[item.anchor])
            pixels = torch.tensor(picture / 127.5 - 1.0, dtype=torch.float32).permute(2, 0, 1)[None]
            with torch.no_grad():
                posterior = pipeline.vae.encode(pixels).latent_dist
            first, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(item.seed))
            clean = 0.18215 * (posterior.mean + torch.exp(0.5 * posterior.logvar) * first)
            a, told = abar()[item.timestep], torch.tensor([item.timestep])
            x = a**0.5 * clean + (1 - a) ** 0.5 * noise
            velocity = a**0.5 * noise - (1 - a) ** 0.5 * clean
            predicted = student(x, told, text(pipeline, item.concept)).sample
            if place >= settings.batch_size:
                total = (
                    total + settings.prior_weight * ((predicted - velocity) ** 2).mean() / settings.batch_size
                )
                continue
            with torch.no_grad():
                anchor = student(x, told, text(pipeline, item.prompt)).sample
            wanted = anchor if settings.loss == "model" else velocity
            # One mask channel for four error channels.
            total = total + 4 * ((predicted - wanted) ** 2).mean() / settings.batch_size
        losses.append(total.item())
        student.zero_grad()
        total.backward()
        stepped(own, names, adam, clipped({name: own[name].grad for name in names}, settings.max_grad_norm))
    return losses, {name: own[name].detach() for name in names}


@pytest.mark.parametrize("loss", ["model", "noise"])
def test_ac_asks_for_the_velocity_where_it_asked_for_noise(pipeline, loss):
    settings = ac_settings(loss=loss, prior_preservation=True, noaug=True)
    artifact = ac.fit(pipeline, TARGET, safe_images(), settings, SEED)
    losses, weights = ac_oracle(pipeline, settings, list(artifact.tensors))
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-4)
    assert_same_edit(artifact.tensors, weights, pipeline.unet.state_dict())


def follows(artifact, pipeline, settings, loss_of):
    """The artifact is what two updates of Adam on `loss_of(student, update)` make of the whole UNet."""
    names = [name for name, _ in pipeline.unet.named_parameters()]
    (student, own), adam, losses = trainable(pipeline.unet, names), Adam(settings.learning_rate), []
    for update in range(2):
        loss = loss_of(student, update)
        losses.append(loss.item())
        stepped(own, names, adam, gradient(student, names, loss))
    base = pipeline.unet.state_dict()
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-4)
    assert_same_edit(whole(artifact.tensors, base, names), {n: own[n].detach() for n in names}, base)


def test_salun_keeps_safe_images_by_their_velocity(pipeline):
    preset = read_yaml("methods/salun.yaml")["presets"]["paper"]
    quick = {"iterations": 2, "batch_size": 3, "learning_rate": 1e-5, "alpha": 0.5, "mask_ratio": None}
    settings = salun.Settings(**{**preset, **quick})
    artifact = salun.fit(pipeline, TARGET, image_sets(), settings, SEED)
    from palimpsest.methods import _relabel

    found = _relabel.material(pipeline, TARGET, image_sets(), settings.surrogate, settings.batch_size)
    draws = salun.plan_draws(found, settings, 1000, SEED)[1]
    formulas = Texts(pipeline, settings.posterior)
    assert formulas.velocity
    follows(
        artifact,
        pipeline,
        settings,
        lambda student, update: (
            formulas.forget(student, draws, update) + 0.5 * formulas.remain(student, draws, update)
        ),
    )


def test_erasediff_keeps_safe_images_by_their_velocity(pipeline):
    preset = read_yaml("methods/erasediff.yaml")["presets"]["official"]
    quick = {"mode": "intended", "epochs": 2, "iterations": 1, "batch_size": 3, "learning_rate": 1e-5}
    settings = erasediff.Settings(**{**preset, **quick, "parameters": "full", "forget_weight": 0.5})
    artifact = erasediff.fit(pipeline, TARGET, image_sets(), settings, SEED)
    from palimpsest.methods import _relabel

    found = _relabel.material(pipeline, TARGET, image_sets(), settings.surrogate, settings.batch_size)
    draws = erasediff.draw(found, settings, 1000, SEED)
    formulas = Texts(pipeline, settings.posterior)
    follows(
        artifact,
        pipeline,
        settings,
        lambda student, update: (
            formulas.remain(student, draws, update) + 0.5 * formulas.forget(student, draws, update)
        ),
    )


# --- sampling: the same network, told in noise and in velocity ---


def in_velocity(pipeline):
    """A checkpoint whose UNet gives, as a velocity, what that of `pipeline` gives as noise."""
    unet, levels = copy.deepcopy(pipeline.unet), torch.tensor(abar(), dtype=torch.float32)

    def turned(module, args, kwargs, output):
        a = levels[int(args[1])]
        return ((output[0] - (1 - a).sqrt() * args[0]) / a.sqrt(),)

    unet.register_forward_hook(turned, with_kwargs=True)
    scheduler = type(pipeline.scheduler).from_config(
        {**pipeline.scheduler.config, "prediction_type": "v_prediction"}
    )
    return replace(pipeline, unet=unet, scheduler=scheduler)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (sld, sld.Settings(warmup=1, guidance_scale=20.0, threshold=0.02, momentum_scale=0.5)),
        (sd_np, sd_np.Settings()),
    ],
    ids=["sld", "sd_np"],
)
def test_guidance_makes_the_images_it_makes_of_noise(method, settings):
    noise = tiny.build()
    requests = [Request("a", "a robot with gears", 5), Request("b", "the house", 6)]
    sampler = Sampler(name="ddim", steps=4, guidance=4.0)

    def made(pipeline, used=True):
        if used:
            pipeline = method.apply(pipeline, Artifact(), TARGET, settings)
        return np.stack([g.image for g in generate(pipeline, requests, sampler, 16)]).astype(int)

    expected = made(noise)
    assert np.abs(made(noise, used=False) - expected).max() > 5
    assert np.abs(made(in_velocity(noise)) - expected).max() <= 1


def test_a_direction_is_learned_from_the_velocity(pipeline):
    settings = selfd.Settings(
        iterations=1, batch_size=4, learning_rate=0.01, pad="max_length", vectors="joint"
    )
    artifact = selfd.fit(pipeline, TARGET, safe_images(), settings, SEED)
    gathered = selfd.gather(pipeline, TARGET, safe_images(), settings)
    (batch,) = selfd.draw(settings, len(gathered.noisy), 1000, generator(SEED, "selfd"))
    start = selfd.initial(pipeline, ("joint",), settings.init_range, generator(SEED, "selfd/vectors"))[0]
    prompts = [prompt for part in safe_images().sets for prompt in part.prompts]
    images, total = np.concatenate([part.images for part in safe_images().sets]), 0.0
    for row, time, seed in zip(
        batch.rows.tolist(), batch.timesteps.tolist(), batch.seeds.tolist(), strict=True
    ):
        first, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        pixels = torch.tensor(images[row] / 127.5 - 1.0, dtype=torch.float32).permute(2, 0, 1)[None]
        with torch.no_grad():
            posterior = pipeline.vae.encode(pixels).latent_dist
        clean, a = 0.18215 * (posterior.mean + posterior.std * first), abar()[time]
        unet = copy.deepcopy(pipeline.unet)
        unet.mid_block.register_forward_hook(lambda module, args, output: output + start)
        with torch.no_grad():
            x = a**0.5 * clean + (1 - a) ** 0.5 * noise
            predicted = unet(x, torch.tensor([time]), text(pipeline, prompts[row])).sample
        total += float(((predicted - a**0.5 * noise + (1 - a) ** 0.5 * clean) ** 2).mean()) / len(batch.rows)
    assert artifact.meta["losses"] == [pytest.approx(total, rel=1e-4)]
