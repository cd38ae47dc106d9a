"""SPM against an oracle written from the paper and the facts about the official scripts: own branches, sampler,
anchors and optimiser, same draws.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.methods import _adapters, _gates, _training, spm
from palimpsest.methods.contract import Target, ThemeTarget, TrainingData
from palimpsest.params import read_yaml
from tests import tiny
from tests.methods.branches import ddim_from_zero, layer_names, noise_of, released, text, with_branches
from tests.methods.erasing import TARGET, Adam, assert_same_edit

PRESETS = {name: spm.Settings(**values) for name, values in read_yaml("methods/spm.yaml")["presets"].items()}
SEED = 5
SMALL = Target((ThemeTarget("uncased", ("gears", "blue gear"), "robot"),))


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def short(preset, **values):
    """A preset with three short updates of two samples; the first has step size 0."""
    quick = {"iterations": 3, "batch_size": 2, "steps": 4, "learning_rate": 1e-4, "warmup_fraction": 0.34}
    return spm.Settings(**{**PRESETS[preset].model_dump(), **quick, **values})


def anchor_of(concept, seed):
    """A direction drawn until accepted with probability 1 - cosine, then scaled to 0.8 to 1.2 of the concept."""
    generator = torch.Generator().manual_seed(int(seed))
    length = concept.flatten().norm()
    while True:
        noise = torch.randn(concept.shape[1:], generator=generator)
        unit = noise / noise.flatten().norm()
        cosine = torch.nn.functional.cosine_similarity(unit.flatten(), concept.flatten(), dim=0)
        if torch.rand((), generator=generator) < 1 - cosine:
            return (0.8 + 0.4 * torch.rand((), generator=generator)) * length * unit[None]


def step_size(settings, update):
    """One update of linear warm-up from 0, then three half cosines over the rest."""
    if update == 0:
        return 0.0
    place = 3 * (update - 1) / (settings.iterations - 1)
    return settings.learning_rate * 0.5 * (1 + np.cos(np.pi * (place - np.floor(place))))


def sample_loss(pipeline, settings, student, pair, draw, anchors):
    """The loss of one sample, each prediction on its own. draw: (stops, seed, height, width)."""
    frozen, empty = pipeline.unet, text(pipeline, "")
    concept, neutral = text(pipeline, pair[0]), text(pipeline, pair[1])
    stops, seed, height, width = draw
    if settings.scheduler == "official_ddim":
        latents = ddim_from_zero(
            student, noise_of(seed, height, width), concept, empty, settings.steps, stops
        )
    else:
        latents = released(
            student, noise_of(seed, height, width), concept, empty, pipeline, settings.steps, stops
        )
    own = (1000 // settings.steps) * (settings.steps - 1 - stops)
    if settings.scheduler == "pndm":
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(settings.steps)
        own = int(scheduler.timesteps[stops])
    told = torch.tensor([own if settings.told == "own" else 999 - int(stops * 1000 / settings.steps)])
    with torch.no_grad():
        positive, base = (frozen(latents, told, c).sample for c in (concept, neutral))
    wanted = base - settings.negative_guidance * (positive - base)
    loss = ((student(latents, told, concept).sample - wanted) ** 2).mean()
    made = [anchor_of(concept, seed) for seed in anchors]
    held = [empty, made[2], empty, made[3]] if settings.anchors == "official" else made
    for embedding in held:
        with torch.no_grad():
            before = frozen(latents, told, embedding).sample
        after = student(latents, told, embedding).sample
        loss = loss + settings.la_strength * ((after - before) ** 2).mean() / len(held)
    return loss


def oracle(pipeline, settings, pairs, draws, start):
    """Losses and branches after all updates of one set of branches, one sample at a time."""
    tensors = {name: value.clone().requires_grad_() for name, value in start.items()}
    losses, adam = [], Adam(0.0, settings.weight_decay)
    for update in range(settings.iterations):
        student = with_branches(pipeline.unet, tensors, settings.alpha / settings.rank)
        total = 0.0
        for row in range(settings.batch_size):
            drawn = (int(draws.stops[update, row]), draws.seeds[update, row], *draws.sizes[update].tolist())
            pair = pairs[draws.concepts[update, row]]
            anchors = draws.anchors[update, row]
            total = (
                total + sample_loss(pipeline, settings, student, pair, drawn, anchors) / settings.batch_size
            )
        losses.append(total.item())
        gradients = dict(zip(tensors, torch.autograd.grad(total, list(tensors.values())), strict=True))
        adam.rate = step_size(settings, update)
        values = {name: tensor.detach() for name, tensor in tensors.items()}
        tensors = {n: v.requires_grad_() for n, v in adam.update(values, gradients).items()}
    return losses, {name: tensor.detach() for name, tensor in tensors.items()}


def drawn(settings, index, count):
    """The draws of one set of branches, and its first tensors."""
    sizes = [4, 6] if settings.dynamic_resolution else [8]
    return (
        spm.draw(settings, count, sizes, _training.generator(SEED, f"spm {index}")),
        _training.generator(SEED, f"spm branches {index}"),
    )


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("preset", "values"),
    [
        # Adam turns rounding errors, which a weight of 1000 makes large, into steps: small ones, then.
        ("official", {"rank": 2, "batch_size": 1, "learning_rate": 1e-5}),
        ("paper", {"dynamic_resolution": False, "la_strength": 30.0}),
        ("intended", {"scheduler": "pndm", "la_strength": 30.0}),
        (
            "intended",
            {"adapter_mode": "joint_prompt", "neutral": "a {safe}", "la_strength": 3.0, "batch_size": 1},
        ),
    ],
)
def test_losses_and_branches_match_the_oracle(pipeline, preset, values):
    settings = short(preset, **values)
    before = {n: t.clone() for n, t in pipeline.unet.state_dict().items()}
    artifact = spm.fit(pipeline, SMALL, TrainingData(), settings, SEED)
    neutral = settings.neutral.format(safe="robot")
    sets = {
        "per_keyword": [[("gears", neutral)], [("blue gear", neutral)]],
        "joint_list": [[("gears", neutral), ("blue gear", neutral)]],
        "joint_prompt": [[("gears, blue gear", neutral)]],
    }[settings.adapter_mode]
    losses = []
    for index, pairs in enumerate(sets):
        draws, generator = drawn(settings, index, len(pairs))
        start = _adapters.initial(pipeline.unet, settings.rank, generator)
        expected, tensors = oracle(pipeline, settings, pairs, draws, start)
        losses += expected
        ours = {name: tensor[index] for name, tensor in artifact.tensors.items()}
        assert_same_edit(ours, tensors, start)
        assert all(float(tensor.abs().max()) > 0 for tensor in tensors.values())
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-5)
    assert all(torch.equal(before[n], t) for n, t in pipeline.unet.state_dict().items())
    assert not any(module._forward_hooks for module in pipeline.unet.modules())
    assert all(p.grad is None for p in pipeline.unet.parameters())


def test_branches_lie_beside_every_layer_of_the_transformer_blocks(pipeline):
    artifact = spm.fit(pipeline, SMALL, TrainingData(), short("official", iterations=1, rank=3), SEED)
    names = layer_names(pipeline.unet)
    assert len(names) == 12 * 7  # two blocks down, one in the middle, four up
    assert set(artifact.tensors) == {f"{name}.{leaf}" for name in names for leaf in ("down", "up")}
    for name in names:
        out, *inputs = pipeline.unet.get_submodule(name).weight.shape
        assert artifact.tensors[f"{name}.down"].shape == (2, 3, *inputs)
        assert artifact.tensors[f"{name}.up"].shape == (2, out, 3)
    assert artifact.meta["layers"] == len(names)
    assert artifact.meta["trained_parameters"] == sum(t.numel() for t in artifact.tensors.values())


def test_new_branches_are_small_and_do_nothing(pipeline):
    tensors = _adapters.initial(pipeline.unet, 2, torch.Generator().manual_seed(1))
    for name, tensor in tensors.items():
        if name.endswith(".up"):
            assert not tensor.any()
        else:
            # kaiming_uniform with a = sqrt 5 is the uniform distribution within 1 / sqrt(inputs)
            bound = tensor[0].numel() ** -0.5
            assert 0.5 * bound < float(tensor.abs().max()) <= bound
    wide = _adapters.initial(pipeline.unet, 100, torch.Generator())
    assert wide["mid_block.attentions.0.proj_in.up"].shape == (64, 64)  # a convolution has no more channels
    assert wide["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.up"].shape == (64, 100)


def test_levels_and_told_timesteps_of_the_official_sampler(pipeline):
    route = _adapters.route(*spm.schedule(pipeline, PRESETS["official"]))
    assert route.own.tolist() == list(range(957, -1, -33))
    stops = torch.tensor([1, 15, 29])
    assert route.told(stops, "own").tolist() == [924, 462, 0]
    assert route.told(stops, "rescaled").tolist() == [966, 499, 33]
    draws = spm.draw(PRESETS["official"], 3, [4], torch.Generator())
    assert set(draws.stops.flatten().tolist()) == set(range(1, 30))
    assert set(draws.concepts.flatten().tolist()) == {0, 1, 2}


def test_sides_are_those_of_the_official_buckets(pipeline):
    class Unet:
        class config:
            sample_size, block_out_channels = 64, (320, 640, 1280, 1280)

    assert spm.sides(Unet, PRESETS["official"]) == [32, 40, 48, 56]
    assert spm.sides(pipeline.unet, PRESETS["official"]) == [4, 6]
    assert spm.sides(Unet, spm.Settings(dynamic_resolution=False)) == [64]


def test_anchors_that_count():
    assert spm.counted_anchors(PRESETS["official"]) == (2, [2, 3])
    assert spm.counted_anchors(PRESETS["intended"]) == (0, [0, 1, 2, 3])
    assert spm.counted_anchors(spm.Settings(anchor_count=3)) == (1, [1, 2])
    assert spm.counted_anchors(spm.Settings(la_strength=0)) == (0, [])


def test_anchors_point_anywhere_at_the_length_of_the_concept():
    concept = torch.randn(77, 32, generator=torch.Generator().manual_seed(1))
    anchors = torch.stack([spm.anchor(concept, seed).flatten() for seed in range(200)])
    lengths = anchors.norm(dim=1) / concept.norm()
    assert 0.8 <= float(lengths.min()) < 0.83
    assert 1.17 < float(lengths.max()) <= 1.2
    cosines = torch.nn.functional.cosine_similarity(anchors, concept.flatten()[None])
    assert float(cosines.abs().max()) < 0.1
    # In two dimensions likeness matters: what points the way of the concept is mostly drawn again.
    flat = torch.stack([spm.anchor(torch.tensor([[1.0, 0.0]]), seed)[0] for seed in range(400)])
    assert float((flat[:, 0] < 0).float().mean()) > 0.7


def test_step_sizes_are_those_of_diffusers():
    from diffusers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup as official

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = official(optimizer, num_warmup_steps=500, num_training_steps=3000, num_cycles=3)
    settings = PRESETS["official"]
    for update in range(3000):
        assert spm.rate_factor(update, settings) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.slow
def test_equal_seeds_give_equal_branches_whatever_the_forward_batch(pipeline):
    fits = [
        spm.fit(
            pipeline, SMALL, TrainingData(), short("paper", forward_batch=size, learning_rate=1e-3), seed
        ).tensors
        for size, seed in ((32, 1), (32, 1), (1, 1), (32, 2))
    ]
    distance = [max(float((fits[0][n] - other[n]).abs().max()) for n in other) for other in fits[1:]]
    assert distance[0] == 0.0
    assert distance[1] < 1e-3
    assert distance[2] > 1e-2


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("official", {}),
        ("intended", {"neutral": "{safe}"}),
        ("paper", {"neutral": "{safe}", "la_strength": 0.0}),
    ],
)
def test_evaluations_are_counted(pipeline, preset, values):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    artifact = spm.fit(pipeline, SMALL, TrainingData(), short(preset, **values), SEED)
    handle.remove()
    # Copies of the hooked module count too.
    assert artifact.meta["unet_evaluations"] == sum(seen)


def test_concepts_of_each_mode():
    settings = spm.Settings(neutral="a {safe}")
    pairs = [(w, "a robot") for w in ("gears", "gear on a robot", "blue gear")]
    pairs += [("crack", "a house"), ("static", "a house")]
    assert spm.concepts_of(TARGET, settings) == [pairs]
    single = settings.model_copy(update={"adapter_mode": "per_keyword"})
    assert spm.concepts_of(TARGET, single) == [[pair] for pair in pairs]
    prompt = settings.model_copy(update={"adapter_mode": "joint_prompt"})
    assert spm.concepts_of(TARGET, prompt) == [[(TARGET.text, "a robot, house")]]
    assert _gates.split_words(TARGET.text) == TARGET.keywords


def test_targets_that_cannot_be(pipeline):
    def fit(words, **values):
        target = Target((ThemeTarget("t", words, "robot"),))
        return spm.fit(pipeline, target, TrainingData(), short("paper", **values), SEED)

    with pytest.raises(ValueError, match="'  ' has no tokens"):
        fit(("gears", "  "))
    with pytest.raises(ValueError, match="no keyword to erase"):
        fit(())
    with pytest.raises(ValueError, match="'robot' is its own neutral text"):
        fit(("robot",), neutral="{safe}")


def test_a_unet_without_transformer_blocks_is_refused(pipeline):
    from dataclasses import replace

    from diffusers.models import UNet2DModel

    plain = UNet2DModel(sample_size=8, block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2,
                        up_block_types=("UpBlock2D",) * 2, norm_num_groups=16)  # fmt: skip
    with pytest.raises(ValueError, match="UNet2DModel has no Transformer2DModel"):
        spm.fit(replace(pipeline, unet=plain), SMALL, TrainingData(), short("paper"), SEED)


def test_a_loss_that_is_not_finite_stops_the_fit(pipeline):
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        spm.fit(pipeline, SMALL, TrainingData(), short("paper", learning_rate=1e20, iterations=20), SEED)


@pytest.mark.slow
def test_bfloat16_is_close_and_leaves_float32_branches(pipeline):
    exact, rough = (
        spm.fit(pipeline, SMALL, TrainingData(), short("intended", compute=kind, la_strength=1.0), SEED)
        for kind in ("float32", "bfloat16")
    )
    assert rough.meta["losses"] != exact.meta["losses"]
    assert rough.meta["losses"] == pytest.approx(exact.meta["losses"], rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in rough.tensors.values())
