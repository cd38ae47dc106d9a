"""ACE against an oracle written from the formula and the facts about the official script: own branches, sampler and
optimiser, same draws.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from palimpsest.methods import _adapters, _training, ace
from palimpsest.methods.contract import Artifact, Target, ThemeTarget, TrainingData
from palimpsest.params import Sampler, read_yaml
from palimpsest.sampling.loop import Request, generate
from tests import tiny
from tests.methods.branches import layer_names, noise_of, released, text, with_branches
from tests.methods.erasing import TARGET, Adam, assert_same_edit

PRESETS = {name: ace.Settings(**values) for name, values in read_yaml("methods/ace.yaml")["presets"].items()}
SEED = 5
ANCHORS = ("a red lamp", "the tree")  # what TARGET retains
REQUESTS = [Request("a", "a robot with gears", 5), Request("b", "the house", 6)]
SAMPLER = Sampler(name="ddim", steps=3, guidance=4.0)


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def short(preset, **values):
    """A preset with three short updates of two samples."""
    quick = {"iterations": 3, "batch_size": 2, "steps": 4, "learning_rate": 1e-4, "concept_mode": "sample"}
    return ace.Settings(**{**PRESETS[preset].model_dump(), **quick, **values})


def draws_of(settings, concepts=5, anchors=2):
    return ace.draw(settings, concepts, anchors, _training.generator(SEED, "ace"))


def images(pipeline):
    return np.stack([g.image for g in generate(pipeline, REQUESTS, SAMPLER, 16)]).astype(int)


def timesteps(pipeline, steps):
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps


def sample_loss(pipeline, settings, student, concept, seed, place, anchors):
    """The loss of one sample, each prediction on its own."""
    frozen, empty, told_rule = pipeline.unet, text(pipeline, ""), settings.told
    stops = settings.steps if settings.xt == "official_clean" else place
    latents = released(student, noise_of(seed, 8, 8), concept, empty, pipeline, settings.steps, stops)
    if told_rule == "own":
        told = timesteps(pipeline, settings.steps)[place][None]
    else:
        told = timesteps(pipeline, 1000)[int(place * 1000 / settings.steps)][None]

    def off(embedding):
        with torch.no_grad():
            return frozen(latents, told, embedding).sample

    def on(embedding):
        return student(latents, told, embedding).sample

    e_empty, e_concept, eta = off(empty), off(concept), settings.negative_guidance
    if settings.correction == "anchors":
        correction = sum(off(a) - e_empty for a in anchors)
    else:
        correction = off(text(pipeline, settings.surrogate)) - e_empty
    uncond = e_empty + eta * (e_concept - e_empty) - settings.surrogate_guidance * correction
    l_uncond = ((on(empty) - uncond) ** 2).mean()
    l_cond = ((on(concept) - e_empty + eta * (e_concept - e_empty)) ** 2).mean()
    l_prior = sum(((on(a) - off(a)) ** 2).mean() for a in anchors) / len(anchors) if anchors else 0.0
    erase = settings.null_weight * l_uncond + (1 - settings.null_weight) * l_cond
    return (1 - settings.prior_weight) * erase + settings.prior_weight * l_prior


def oracle(pipeline, settings, draws, start, anchors):
    """Losses and branches after all updates, one sample at a time."""
    tensors = {name: value.clone().requires_grad_() for name, value in start.items()}
    words = [TARGET.text] if settings.concept_mode == "joint" else list(TARGET.keywords)
    losses, adam = [], Adam(settings.learning_rate)
    for update in range(settings.iterations):
        student = with_branches(pipeline.unet, tensors, 1 / 4)
        total = 0.0
        for row in range(settings.batch_size):
            concept = text(pipeline, words[draws.concepts[update, row]])
            held = [text(pipeline, anchors[k]) for k in draws.anchors[update, row].tolist()]
            place, seed = int(draws.places[update, row]), draws.seeds[update, row]
            loss = sample_loss(pipeline, settings, student, concept, seed, place, held)
            total = total + loss / settings.batch_size
        losses.append(total.item())
        gradients = dict(zip(tensors, torch.autograd.grad(total, list(tensors.values())), strict=True))
        values = {name: tensor.detach() for name, tensor in tensors.items()}
        tensors = {n: v.requires_grad_() for n, v in adam.update(values, gradients).items()}
    return losses, {name: tensor.detach() for name, tensor in tensors.items()}


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("official", {"concept_mode": "joint", "batch_size": 1}),
        ("intended", {}),
        ("intended", {"correction": "surrogate", "surrogate": "a robot", "null_weight": 0.5}),
        (
            "intended",
            {"correction": "surrogate", "surrogate": "a robot", "prior_weight": 0.0, "batch_size": 1},
        ),
    ],
)
def test_losses_and_branches_match_the_oracle(pipeline, preset, values):
    settings = short(preset, **values)
    before = {n: t.clone() for n, t in pipeline.unet.state_dict().items()}
    artifact = ace.fit(pipeline, TARGET, TrainingData(), settings, SEED)
    start = _adapters.initial(pipeline.unet, 4, _training.generator(SEED, "ace branches"))
    anchors = ANCHORS if settings.prior_weight else ()
    draws = draws_of(settings, 1 if settings.concept_mode == "joint" else 5, len(anchors))
    losses, tensors = oracle(pipeline, settings, draws, start, anchors)
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-5)
    assert_same_edit({name: tensor[0] for name, tensor in artifact.tensors.items()}, tensors, start)
    assert set(artifact.tensors) == {
        f"{name}.{leaf}" for name in layer_names(pipeline.unet) for leaf in ("down", "up")
    }
    assert all(torch.equal(before[n], t) for n, t in pipeline.unet.state_dict().items())
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_the_official_latent_is_clean_whatever_the_timestep(pipeline):
    settings = short("official", iterations=50, steps=6)
    draws = draws_of(settings)
    assert set(draws.places.flatten().tolist()) == set(range(6))
    route = _adapters.route(*ace.schedule(pipeline, settings))
    assert len(route.own) == 7  # PNDM evaluates its second timestep twice
    assert route.told(torch.tensor([0, 1, 5]), "rescaled").tolist() == [1000, 835, 168]
    assert torch.equal(route.told(draws.places, "own"), timesteps(pipeline, 6)[draws.places])
    # Guided steps, then four frozen and four trained predictions.
    assert ace.evaluations(settings, draws, False) == 100 * (2 * 6 + 8)
    intended = settings.model_copy(update={"xt": "intended"})
    assert ace.evaluations(intended, draws, False) == 2 * int(draws.places.sum()) + 100 * 8


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("official", {}),
        ("intended", {"correction": "surrogate", "surrogate": "a {safe}"}),
        ("intended", {"correction": "surrogate", "prior_weight": 0.0, "start_guidance": 1.0}),
    ],
)
def test_evaluations_are_counted(pipeline, preset, values):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    artifact = ace.fit(pipeline, TARGET, TrainingData(), short(preset, **values), SEED)
    handle.remove()
    # Copies of the hooked module count too.
    assert artifact.meta["unet_evaluations"] == sum(seen)


def test_anchors_are_dealt_evenly():
    settings = ace.Settings(iterations=7, batch_size=3, anchor_batch=2)
    dealt = draws_of(settings, anchors=3).anchors
    assert dealt.shape == (7, 3, 2)
    assert torch.bincount(dealt.flatten()).tolist() == [14, 14, 14]
    assert sorted(dealt.flatten()[:3].tolist()) == [0, 1, 2]
    assert draws_of(settings, anchors=1).anchors.shape == (7, 3, 1)


def test_where_anchors_come_from():
    settings = ace.Settings()
    assert ace.anchor_texts(TARGET, settings) == list(ANCHORS)
    bare = replace(TARGET, retain=())
    assert ace.anchor_texts(bare, settings) == ["robot", "house"]
    given = settings.model_copy(update={"anchors": ("a lamp", "gears", "a lamp")})
    assert ace.anchor_texts(TARGET, given) == ["a lamp"]
    unused = settings.model_copy(update={"correction": "surrogate", "prior_weight": 0.0})
    assert ace.anchor_texts(TARGET, unused) == []
    with pytest.raises(ValueError, match="no anchor is left of"):
        ace.anchor_texts(Target((ThemeTarget("t", ("robot",), "robot"),)), settings)


def strong(pipeline, rank=4):
    """An artifact with branches too large to overlook."""
    artifact = ace.fit(pipeline, TARGET, TrainingData(), short("intended", iterations=1, rank=rank), SEED)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        n: t if n.endswith("down") else 0.3 * torch.randn(t.shape, generator=generator)
        for n, t in artifact.tensors.items()
    }
    return Artifact(tensors, artifact.meta)


def test_branches_are_merged_unless_gated(pipeline):
    artifact, settings = strong(pipeline), short("intended")
    before = images(pipeline)
    used = ace.apply(pipeline, artifact, TARGET, settings)
    assert not used.hooks
    unet = with_branches(pipeline.unet, {n: t[0] for n, t in artifact.tensors.items()}, 1 / 4)
    latents = noise_of(1, 8, 8)
    with torch.no_grad():
        given, expected = (u(latents, 500, text(pipeline, "the house")).sample for u in (used.unet, unet))
    assert torch.allclose(given, expected, atol=1e-5)
    gated = ace.apply(pipeline, artifact, TARGET, settings.model_copy(update={"gate": "paper_linear"}))
    assert gated.unet is pipeline.unet
    assert gated.hooks[0].groups == (5,)
    # The first prompt has every token of the keyword "gears", so its gate is 1; the second is gated.
    assert np.abs(images(gated)[0] - images(used)[0]).max() <= 1
    assert np.abs(images(gated)[1] - images(used)[1]).max() > 1
    assert np.abs(images(used) - before).max() > 5
    assert np.array_equal(images(pipeline), before)


def test_strength_scales_the_branches(pipeline):
    artifact, settings = strong(pipeline), short("intended", strength=0.5)
    base, half, full = (
        ace.apply(pipeline, artifact, TARGET, settings.model_copy(update={"strength": s})).unet.state_dict()
        for s in (0.0, 0.5, 1.0)
    )
    for name, weight in pipeline.unet.state_dict().items():
        assert torch.equal(base[name], weight)
        assert torch.allclose(half[name], (base[name] + full[name]) / 2, atol=1e-6)
    off = settings.model_copy(update={"strength": 0.0})
    assert ace.apply(pipeline, artifact, TARGET, off) is pipeline


@pytest.mark.slow
def test_equal_seeds_give_equal_branches_whatever_the_forward_batch(pipeline):
    fits = [
        ace.fit(
            pipeline, TARGET, TrainingData(), short("intended", forward_batch=size, learning_rate=1e-3), seed
        ).tensors
        for size, seed in ((32, 1), (32, 1), (1, 1), (32, 2))
    ]
    distance = [max(float((fits[0][n] - other[n]).abs().max()) for n in other) for other in fits[1:]]
    assert distance[0] == 0.0
    assert distance[1] < 1e-3
    assert distance[2] > 1e-2


def test_targets_and_schedulers_that_cannot_be(pipeline):
    empty = Target((ThemeTarget("t", ("gears", " "), "robot"),))
    with pytest.raises(ValueError, match="' ' has no tokens"):
        ace.fit(pipeline, empty, TrainingData(), short("intended"), SEED)
    from diffusers.schedulers import LMSDiscreteScheduler

    other = replace(pipeline, scheduler=LMSDiscreteScheduler.from_config(pipeline.scheduler.config))
    with pytest.raises(ValueError, match="LMSDiscreteScheduler here"):
        ace.fit(other, TARGET, TrainingData(), short("intended"), SEED)


def test_a_loss_that_is_not_finite_stops_the_fit(pipeline):
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        ace.fit(pipeline, TARGET, TrainingData(), short("intended", learning_rate=1e20, iterations=20), SEED)
