"""ESD against an oracle written from the paper and the facts about the official scripts: own sampler, own
optimiser, same draws.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
from pydantic import ValidationError

from palimpsest.methods import esd
from palimpsest.methods._training import generator
from palimpsest.methods.contract import Target, ThemeTarget, TrainingData
from palimpsest.params import read_yaml
from tests import tiny
from tests.methods.erasing import TARGET, Adam, assert_same_edit, ddim

PRESETS = {name: esd.Settings(**values) for name, values in read_yaml("methods/esd.yaml")["presets"].items()}
SEED = 5


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def short(preset, **values):
    """A preset with four short updates of two samples, strong enough to be seen."""
    quick = {"iterations": 4, "batch_size": 2, "steps": 6, "learning_rate": 2e-4, "concept_mode": "sample"}
    return esd.Settings(**{**PRESETS[preset].model_dump(), **quick, **values})


def draws_of(settings, timesteps, concepts=5):
    return esd.draw(settings, concepts, timesteps, 1000, generator(SEED, "esd"))


def text(pipeline, prompt):
    with torch.no_grad():
        ids = pipeline.tokenizer(prompt)["input_ids"]
        padded = torch.tensor([ids + [pipeline.tokenizer.eos_token_id] * (77 - len(ids))])
        return pipeline.text_encoder(padded).last_hidden_state


def compvis_latent(unet, noise, cond, uncond, steps, stops):
    """The sampler of 2023 written out: it starts below the largest timestep; level 0 is the smallest one."""
    grid = [1 + k * (1000 // steps) for k in range(steps)][:-1][::-1]
    after = [*grid[1:], 0]
    return ddim(unet, noise, cond, uncond, list(zip(grid, after, strict=True))[:stops], 3.0)


def released_latent(unet, noise, cond, uncond, pipeline, steps, stops):
    """The checkpoint's own sampler, from the start, one sample alone."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for timestep in scheduler.timesteps[:stops]:
            empty, full = unet(latents, timestep, uncond).sample, unet(latents, timestep, cond).sample
            latents = scheduler.step(empty + 3.0 * (full - empty), timestep, latents).prev_sample
    return latents


def oracle(pipeline, settings, names, draws):
    """Losses and weights after all updates, one sample at a time."""
    frozen, student = pipeline.unet, copy.deepcopy(pipeline.unet)
    own = dict(student.named_parameters())
    for name, parameter in own.items():
        parameter.requires_grad_(name in names)
    words = (
        [word for theme in TARGET.themes for word in theme.keywords]
        if settings.concept_mode == "sample"
        else [TARGET.text]
    )
    empty, losses, adam = text(pipeline, ""), [], Adam(settings.learning_rate)
    for update in range(settings.iterations):
        total = 0.0
        for row in range(settings.batch_size):
            concept = text(pipeline, words[draws.concepts[update, row]])
            source = concept if settings.erase_from is None else text(pipeline, settings.erase_from)
            side = 8 * settings.size_factor
            noise = torch.randn(
                1, 4, side, side, generator=torch.Generator().manual_seed(int(draws.seeds[update, row]))
            )
            stops, told = int(draws.stops[update, row]), draws.timesteps[update, row][None]
            if settings.stop_rule == "compvis":
                latents = compvis_latent(student, noise, source, empty, settings.steps, stops)
            else:
                latents = released_latent(frozen, noise, source, empty, pipeline, settings.steps, stops)
            with torch.no_grad():
                e_empty, e_concept, e_source = (
                    frozen(latents, told, c).sample for c in (empty, concept, source)
                )
            eta = settings.negative_guidance
            wanted = (e_empty if settings.anchor == "empty" else e_source) - eta * (e_concept - e_empty)
            total = (
                total + ((student(latents, told, source).sample - wanted) ** 2).mean() / settings.batch_size
            )
        losses.append(total.item())
        student.zero_grad()
        total.backward()
        values = {name: own[name].detach() for name in names}
        for name, value in adam.update(values, {name: own[name].grad for name in names}).items():
            own[name].data.copy_(value)
    return losses, {name: own[name].detach() for name in names}


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("x_compvis", {}),
        ("u_compvis", {"concept_mode": "joint"}),
        ("x_diffusers", {}),
        ("u_diffusers", {"concept_mode": "joint"}),
        ("x_diffusers", {"erase_from": "a robot"}),
        ("x_diffusers_1024", {"iterations": 2}),
    ],
)
def test_losses_and_weights_match_the_oracle(pipeline, preset, values):
    # Small steps: Adam turns the rounding error of a gradient near zero into a whole step.
    settings = short(preset, **values, learning_rate=1e-6 if preset.startswith("u_") else 1e-5)
    before = {n: t.clone() for n, t in pipeline.unet.state_dict().items()}
    artifact = esd.fit(pipeline, TARGET, TrainingData(), settings, SEED)
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(settings.steps)
    draws = draws_of(settings, scheduler.timesteps, concepts=5 if settings.concept_mode == "sample" else 1)
    losses, weights = oracle(pipeline, settings, list(artifact.tensors), draws)
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-5)
    assert_same_edit(artifact.tensors, weights, before)
    assert all(torch.equal(before[n], t) for n, t in pipeline.unet.state_dict().items())
    edited = esd.apply(pipeline, artifact, TARGET, settings).unet.state_dict()
    assert all(torch.equal(edited[n], artifact.tensors.get(n, t)) for n, t in before.items())
    assert all(p.grad is None for p in pipeline.unet.parameters())


def attn2(names):
    return [n for n in names if re.search(r"\.attn2\.to_(q|k|v|out\.0)\.(weight|bias)$", n)]


def test_trained_parameters_of_each_preset_exactly(pipeline):
    own = dict(pipeline.unet.named_parameters())
    chosen = {
        name: set(esd.parameter_names(pipeline.unet, settings.parameters))
        for name, settings in PRESETS.items()
    }
    assert chosen["x_compvis"] == chosen["x_diffusers"] == chosen["x_diffusers_1024"] == set(attn2(own))
    assert (
        len(chosen["x_compvis"]) == 5 * 7
    )  # q, k, v, out and its bias; two blocks down, one in the middle, four up
    outside = re.compile(r"attn2|^time_embedding\.|^conv_norm_out\.|^conv_out\.")
    assert chosen["u_compvis"] == {n for n in own if not outside.search(n)}
    # Layers, unlike norms, have a weight of two or more dimensions; their biases come along.
    layers = {n for n in own if own[n.rsplit(".", 1)[0] + ".weight"].ndim >= 2}
    assert chosen["u_diffusers"] == {n for n in layers if "attn2" not in n}
    assert {"time_embedding.linear_1.weight", "conv_out.bias", "conv_in.weight"} <= chosen[
        "u_diffusers"
    ] - set(attn2(own))
    assert {"conv_in.bias", "down_blocks.0.resnets.0.norm1.weight"} <= chosen["u_compvis"]
    assert not any("norm" in n.rsplit(".", 2)[-2] for n in chosen["u_diffusers"])
    strict = set(esd.parameter_names(pipeline.unet, "esd-x-strict"))
    assert strict == {n for n in own if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert set(esd.parameter_names(pipeline.unet, "full")) == set(own)
    assert set(esd.parameter_names(pipeline.unet, "esd-all")) == layers
    assert set(esd.parameter_names(pipeline.unet, "selfattn")) == {n for n in own if ".attn1." in n}


def test_levels_and_told_timesteps_of_the_sampler_of_2023():
    settings = esd.Settings(iterations=4000)
    grid = torch.arange(981, 0, -20)
    draws = draws_of(settings, grid)
    seen = {}
    for stops, told in zip(draws.stops.flatten().tolist(), draws.timesteps.flatten().tolist(), strict=True):
        seen.setdefault(told // 20, set()).add(stops)
    assert seen == {place: {49 if place == 0 else 50 - place} for place in range(50)}
    # The latent's level is the next timestep of the grid without its first element.
    levels = {place: int(grid[1:][50 - place]) for place in (10, 25, 49)}
    assert levels == {10: 161, 25: 461, 49: 941}
    assert int(draws.timesteps.min()) < 20
    assert int(draws.timesteps.max()) > 979
    exact = draws_of(esd.Settings(stop_rule="exact", iterations=500), grid)
    assert torch.equal(exact.timesteps, grid[exact.stops])
    assert set(exact.stops.flatten().tolist()) == set(range(50))


def test_eta_of_the_two_scripts_differs_by_one(pipeline):
    old = short("x_diffusers", anchor="empty", negative_guidance=1.0)
    new = short("x_diffusers", anchor="concept", negative_guidance=2.0)
    first, second = (esd.fit(pipeline, TARGET, TrainingData(), s, SEED).tensors for s in (old, new))
    assert max(float((first[n] - second[n]).abs().max()) for n in first) < 2e-5
    other = esd.fit(
        pipeline, TARGET, TrainingData(), short("x_diffusers", negative_guidance=1.0), SEED
    ).tensors
    assert max(float((first[n] - other[n]).abs().max()) for n in first) > 5e-5


def test_student_and_frozen_trajectories_differ_only_after_an_update(pipeline):
    first, second = (
        esd.fit(
            pipeline, TARGET, TrainingData(), short("x_compvis", trajectory=t, learning_rate=0.01), SEED
        ).meta["losses"]
        for t in ("student", "frozen")
    )
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    assert first[-1] != pytest.approx(second[-1], rel=1e-3)


def test_equal_seeds_give_equal_weights_whatever_the_forward_batch(pipeline):
    fits = [
        esd.fit(pipeline, TARGET, TrainingData(), short("x_diffusers", forward_batch=size), seed).tensors
        for size, seed in ((32, 1), (32, 1), (3, 1), (32, 2))
    ]
    distance = [max(float((fits[0][n] - other[n]).abs().max()) for n in other) for other in fits[1:]]
    assert distance[0] == 0.0
    assert distance[1] < 2e-5
    assert distance[2] > 5e-5


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("x_compvis", {}),
        ("x_diffusers", {}),
        ("x_diffusers", {"erase_from": "a robot", "start_guidance": 1.0}),
    ],
)
def test_evaluations_are_counted(pipeline, preset, values):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    artifact = esd.fit(pipeline, TARGET, TrainingData(), short(preset, **values), SEED)
    handle.remove()  # the student is a copy of the hooked module, so it counts too
    assert artifact.meta["unet_evaluations"] == sum(seen) > 0


def test_keywords_that_say_nothing_are_refused(pipeline):
    for keywords, message in ((("gears", " "), "esd: keyword ' ' has no token"), ((), "esd: .* no keywords")):
        target = Target((ThemeTarget("uncased", keywords, "robot"),))
        with pytest.raises(ValueError, match=message):
            esd.fit(pipeline, target, TrainingData(), short("x_diffusers"), SEED)


def test_a_unet_without_cross_attention_is_refused(pipeline):
    from dataclasses import replace

    from diffusers.models import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    plain = UNet2DModel(8, 4, 4, block_out_channels=(32,), norm_num_groups=16, layers_per_block=1, **blocks)
    with pytest.raises(ValueError, match="nothing to train in UNet2DModel"):
        esd.fit(replace(pipeline, unet=plain), TARGET, TrainingData(), short("x_diffusers"), SEED)


def test_concepts_and_what_conditions_the_student():
    assert esd.concept_pairs(TARGET, esd.Settings()) == [(TARGET.text, TARGET.text)]
    settings = esd.Settings(anchor="concept", concept_mode="sample", erase_from="a {safe}")
    pairs = dict(esd.concept_pairs(TARGET, settings))
    assert pairs["gears"] == "a robot"
    assert pairs["static"] == "a house"
    assert len(pairs) == 5
    joint = settings.model_copy(update={"concept_mode": "joint"})
    assert esd.concept_pairs(TARGET, joint) == [(TARGET.text, "a robot, house")]


def test_settings_that_cannot_be(pipeline):
    with pytest.raises(ValidationError, match="must be 'ddim'"):
        esd.Settings(scheduler="pndm")
    with pytest.raises(ValidationError, match="erase_from needs anchor"):
        esd.Settings(erase_from="a robot")
    from dataclasses import replace

    from diffusers.schedulers import LMSDiscreteScheduler

    other = replace(pipeline, scheduler=LMSDiscreteScheduler.from_config(pipeline.scheduler.config))
    with pytest.raises(ValueError, match="LMSDiscreteScheduler here"):
        esd.fit(other, TARGET, TrainingData(), short("x_diffusers"), SEED)


def test_strength_mixes_base_and_edit(pipeline):
    settings = short("x_diffusers", iterations=1)
    artifact = esd.fit(pipeline, TARGET, TrainingData(), settings, SEED)
    assert (
        esd.apply(pipeline, artifact, TARGET, settings.model_copy(update={"strength": 0.0})).unet
        is pipeline.unet
    )
    half = esd.apply(
        pipeline, artifact, TARGET, settings.model_copy(update={"strength": 0.5})
    ).unet.state_dict()
    for name, base in pipeline.unet.state_dict().items():
        assert torch.allclose(half[name], (base + artifact.tensors.get(name, base)) / 2, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_fit(pipeline):
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        esd.fit(
            pipeline, TARGET, TrainingData(), short("u_diffusers", learning_rate=1e30, iterations=20), SEED
        )


@pytest.mark.slow
def test_bfloat16_is_close_and_leaves_float32_weights(pipeline):
    exact, rough = (
        esd.fit(pipeline, TARGET, TrainingData(), short("x_diffusers", compute=kind), SEED)
        for kind in ("float32", "bfloat16")
    )
    assert rough.meta["losses"] != exact.meta["losses"]
    assert rough.meta["losses"] == pytest.approx(exact.meta["losses"], rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in rough.tensors.values())
