"""What methods declare to cost is what they cost: evaluations that a fit records, and evaluations that really happen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from diffusers.models import UNet2DConditionModel

from palimpsest.methods import _costs, registry
from palimpsest.methods._masked_attention import Finished
from palimpsest.methods._stops import stops_and_timesteps
from palimpsest.methods.contract import ImageSet, Target, ThemeTarget, TrainingData
from palimpsest.params import Sampler
from palimpsest.sampling.loop import Request, generate
from tests import tiny

FILES = registry.settings_files("methods")
IMAGES = 5
TARGET = Target(
    (ThemeTarget("uncased", ("gears", "gear"), "a robot"), ThemeTarget("breakage", ("crack",), "a house")),
    retain=("a tree", "the lamp", "a red house"),
)
WORK = _costs.Work(keywords=3, themes=2, images=IMAGES, retained=3)
SHORT = {"iterations": 3, "batch_size": 2, "steps": 2, "learning_rate": 1e-3, "dynamic_resolution": False}
# With two steps, the stops of the sampler of 2023 and of SPM are 1 whatever is drawn; the other rules are drawn from 0 and 1, or 1 and 2.
FITS = {
    ("ac", "benchmark"): {},
    ("ace", "intended"): {"batch_size": 20},
    ("au", "official"): {"warmup_iterations": 1, "attack_steps": 2, "retain_batch": 2},
    ("erasediff", "intended"): {"epochs": 1, "weight_rule": "value", "iterations": None, "batch_size": 5},
    ("esd", "x_diffusers"): {"batch_size": 40, "erase_from": "{safe}"},
    ("mace", "t14_object"): {"keyword_batch": 2},
    ("metaun", "official"): {"iterations": 1, "images_per_set": 3, "concepts_per_update": 40},
    ("rece", "official"): {},
    ("salun", "paper"): {"mask_images": 3},
    ("selfd", "official"): {"iterations": None, "epochs": 2},
    ("spm", "official"): {},
    ("uce", "compvis2023"): {},
}
OTHERS = {
    ("ac", "inappropriate"): {},
    ("ace", "official"): {},
    ("au", "reg"): {"warmup_iterations": 1, "attack_steps": 2, "retain_batch": 2, "attack_every": 2},
    ("erasediff", "official"): {"epochs": 2},
    ("esd", "x_compvis"): {},
    ("metaun", "official_sdd"): {
        "images_per_set": 2,
        "gamma2_2": 0.0,
        "fixed_timesteps": (3, 7),
        "concepts_per_update": 40,
    },
    ("salun", "official"): {"iterations": None, "alpha": 0.0},
    ("selfd", "joint"): {"iterations": 7},
    ("spm", "paper"): {},
}
CASES = [
    *(pytest.param(*case, changes) for case, changes in FITS.items()),
    *(pytest.param(*case, changes, marks=pytest.mark.slow) for case, changes in OTHERS.items()),
]


@dataclass
class Seen:
    """Evaluations that happened. graded: samples whose evaluation was to be differentiated; calls: of the network."""

    samples: int = 0
    graded: int = 0
    calls: int = 0


@pytest.fixture
def seen(monkeypatch):
    found, forward = Seen(), UNet2DConditionModel.forward

    def counting(self, sample, *args, **kwargs):
        found.samples += len(sample)
        found.calls += 1
        try:
            said = forward(self, sample, *args, **kwargs)
        except Finished:  # MACE needs nothing after the last attention
            found.graded += len(sample)
            raise
        answer = said[0] if isinstance(said, tuple) else said.sample
        found.graded += len(sample) if answer.requires_grad else 0
        return said

    monkeypatch.setattr(UNet2DConditionModel, "forward", counting)
    return found


@cache
def pipeline():
    return tiny.build()


def data(needs):
    generator, sets = np.random.default_rng(0), []
    for role in needs:
        for theme in TARGET.themes:
            images = generator.integers(0, 256, (IMAGES, 16, 16, 3), dtype=np.uint8)
            words = tuple(theme.keywords[i % len(theme.keywords)] for i in range(IMAGES))
            named = words if role == "target_images" else (theme.safe,) * IMAGES
            masks = generator.random((IMAGES, 16, 16)) < 0.5 if role == "masked_images" else None
            prompts = tuple(f"a photo of {word}" for word in named)
            sets.append(
                ImageSet(theme.name, role, images, prompts, masks, words if masks is not None else ())
            )
    return TrainingData(tuple(sets))


def chosen(name, preset, changes):
    known = registry.get(name).Settings.model_fields
    return registry.settings(
        name, preset, {k: v for k, v in {**SHORT, **changes}.items() if k in known}, FILES
    )


def test_every_method_that_fits_declares_its_passes():
    fitting = {name for name in registry.names() if registry.get(name).INFO.fits}
    assert fitting == set(_costs.PASSES) == {name for name, _ in FITS}


@pytest.mark.parametrize(("name", "preset", "changes"), CASES)
def test_declared_passes_are_recorded_and_happen(name, preset, changes, seen):
    method, settings = registry.get(name), chosen(name, preset, changes)
    artifact = method.fit(pipeline(), TARGET, data(method.INFO.needs), settings, seed=0)
    declared = _costs.passes(method.__name__, settings.model_dump(mode="json"), WORK)
    samples = sum(one.samples for one in declared)
    drawn = {("ace", "intended"): 0.1, ("esd", "x_diffusers"): 0.1}.get((name, preset), 0.0)
    drawn = 0.1 if name == "metaun" else drawn
    assert artifact.meta["unet_evaluations"] == pytest.approx(samples, rel=drawn)
    assert seen.samples == artifact.meta["unet_evaluations"]
    assert seen.graded == sum(one.samples for one in declared if one.backward)
    assert seen.calls == pytest.approx(sum(one.calls for one in declared), rel=0.35)


@pytest.mark.parametrize("rule", ["compvis", "binned", "exact"])
def test_the_mean_stop_is_the_mean_of_the_draws(rule):
    recipe = type("Recipe", (), {"stop_rule": rule, "steps": 9})
    generator = torch.Generator().manual_seed(0)
    place = torch.randint(9, (40_000,), generator=generator)
    stops, _ = stops_and_timesteps(place, recipe, torch.arange(9), 1000, generator)
    assert _costs.mean_stop({"stop_rule": rule, "steps": 9}) == pytest.approx(
        float(stops.double().mean()), rel=0.02
    )


@pytest.mark.parametrize(
    ("name", "preset", "changes"),
    [
        ("sd", "default", {}),
        ("sd_np", "default", {}),
        ("sld", "medium", {}),
        ("safree", "intended", {"most_steps": 40}),
    ],
)
def test_declared_branches_are_evaluated(name, preset, changes, seen):
    method = registry.get(name)
    settings = registry.settings(name, preset, changes, FILES)
    sampler = Sampler(name="ddim", steps=3, guidance=4.0, batch=2)
    altered = method.apply(
        pipeline(), method.fit(pipeline(), TARGET, TrainingData(), settings, 0), TARGET, settings
    )
    made = list(
        generate(altered, [Request("a", "gears", 1), Request("b", "a crack", 2)], sampler, tiny.RESOLUTION)
    )
    declared = _costs.sampling(method.__name__, settings.model_dump(mode="json"), sampler)
    assert seen.calls == 3
    if name == "safree":  # a prompt decides how long it is filtered; declared is the most
        assert 2 <= seen.samples / (3 * len(made)) <= declared.branches
    else:
        assert seen.samples == declared.branches * 3 * len(made)


def test_another_checkpoint_and_a_filter_say_so():
    sampler = Sampler(name="ddim", steps=3, guidance=4.0)
    cleaned = registry.settings("cleaned", "default", {}, FILES).model_dump(mode="json")
    other = _costs.sampling("palimpsest.methods.cleaned", cleaned, sampler)
    assert (other.branches, other.architecture, other.resolution) == (2.0, "sd2", 768)
    checker = registry.settings("safety_checker", "official", {}, FILES).model_dump(mode="json")
    assert _costs.sampling("palimpsest.methods.safety_checker", checker, sampler).vision == 1
    assert _costs.sampling("palimpsest.methods.external", {}, sampler).branches == 0
