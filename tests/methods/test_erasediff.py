"""EraseDiff against an oracle that works sample by sample, with its own optimiser and the recorded draws."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from palimpsest.methods import _relabel, erasediff
from palimpsest.methods.contract import TrainingData
from palimpsest.params import read_yaml
from tests import tiny
from tests.methods.erasing import TARGET, Adam, assert_same_edit, error_of_change
from tests.methods.relabelling import Formulas, gradient, image_sets, whole

PRESETS = {
    name: erasediff.Settings(**values)
    for name, values in read_yaml("methods/erasediff.yaml")["presets"].items()
}
SEED = 7
FROZEN = ("time_embedding.", "conv_norm_out.", "conv_out.")


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def short(preset, **values):
    """A preset with few updates of three samples, strong enough to be seen."""
    quick = {"epochs": 2, "iterations": 1, "batch_size": 3, "learning_rate": 1e-5}
    return erasediff.Settings(**{**PRESETS[preset].model_dump(), **quick, **values})


def fit(pipeline, settings, seed=SEED, data=None):
    return erasediff.fit(pipeline, TARGET, data or image_sets(), settings, seed)


def names_of(unet, settings):
    names = [name for name, _ in unet.named_parameters()]
    if settings.parameters == "full":
        return names
    return [n for n in names if ".attn2." not in n and not n.startswith(FROZEN)]


def draws_of(pipeline, settings):
    found = _relabel.material(pipeline, TARGET, image_sets(), settings.surrogate, settings.batch_size)
    return erasediff.draw(found, settings, 1000, SEED)


class Student:
    """A copy of the UNet whose parameters are stepped by the tests' own Adam."""

    def __init__(self, pipeline, settings):
        self.settings, self.draws = settings, draws_of(pipeline, settings)
        self.unet = copy.deepcopy(pipeline.unet).requires_grad_(True)
        self.names = names_of(self.unet, settings)
        self.formulas = Formulas(pipeline, settings.posterior, settings.surrogate)

    @property
    def values(self):
        own = dict(self.unet.named_parameters())
        return {name: own[name].detach().clone() for name in self.names}

    @values.setter
    def values(self, values):
        own = dict(self.unet.named_parameters())
        for name, value in values.items():
            own[name].data.copy_(value)

    def forget(self, step):
        loss = self.formulas.forget(self.unet, self.draws, step)
        return loss.item(), gradient(self.unet, self.names, loss)

    def remain(self, step):
        loss = self.formulas.remain(self.unet, self.draws, step)
        return loss.item(), gradient(self.unet, self.names, loss)

    def apply(self, adam, slopes):
        self.values = adam.update(self.values, slopes)

    def joint(self, step, weight):
        """L_r, L_f and the gradient of L_r + weight L_f."""
        forget, one = self.forget(step)
        remain, two = self.remain(step)
        return remain, forget, {name: two[name] + weight * one[name] for name in self.names}


def official_oracle(pipeline, settings, passes):
    """The script: inner steps, back to the epoch's start, outer steps, K times; one optimiser for all."""
    student, adam, losses, step = Student(pipeline, settings), Adam(settings.learning_rate), [], 0
    for _ in range(settings.epochs):
        start = student.values
        for _ in range(settings.inner_steps):
            seen = []
            for _ in range(passes):
                loss, slopes = student.forget(step)
                student.apply(adam, slopes)
                seen.append(loss)
                step += 1
            student.values = start
            for _ in range(passes):
                remain, forget, slopes = student.joint(step, settings.forget_weight)
                student.apply(adam, slopes)
                losses.append(remain + settings.forget_weight * (forget - sum(seen) / passes))
                step += 1
    return losses, student.values


def flat(slopes):
    return torch.cat([slope.double().flatten() for slope in slopes.values()])


def rule(settings, remain, forget, q):
    keep, erase = flat(remain), flat(forget)
    if settings.weight_rule == "cosine":
        return max(0.0, settings.eta - float(torch.nn.functional.cosine_similarity(keep, erase, dim=0)))
    barrier = settings.eta * (float(erase @ erase) if settings.weight_rule == "gradient" else q)
    return max(0.0, (barrier - float(keep @ erase)) / float(erase @ erase))


def measured(student, step):
    """L_f less what K steps of a fresh Adam on it reach, with the same draws."""
    start, adam = student.values, Adam(student.settings.learning_rate)
    before = student.forget(step)[0]
    for _ in range(student.settings.inner_steps):
        student.apply(adam, student.forget(step)[1])
    after = student.forget(step)[0]
    student.values = start
    return before - after


def intended_oracle(pipeline, settings):
    student, adam = Student(pipeline, settings), Adam(settings.learning_rate)
    losses, weights = [], []
    for step in range(settings.epochs * settings.iterations):
        forget, erase = student.forget(step)
        remain, keep = student.remain(step)
        q = measured(student, step) if settings.weight_rule == "value" else forget
        weight = (
            settings.forget_weight if settings.weight_rule == "constant" else rule(settings, keep, erase, q)
        )
        student.apply(adam, {n: keep[n] + weight * erase[n] for n in student.names})
        losses.append(remain + weight * q)
        weights.append(weight)
    return losses, student.values, weights


OFFICIAL = {
    "official": short("official"),
    "one round": short(
        "official", epochs=1, iterations=2, inner_steps=1, forget_weight=3.0, parameters="full"
    ),
    "a pass is as many updates as there are batches": short(
        "official", epochs=1, iterations=None, inner_steps=1, surrogate="a red lamp", posterior="mean"
    ),
}


@pytest.mark.first_case
@pytest.mark.parametrize("case", OFFICIAL)
def test_the_official_mode_matches_the_oracle(pipeline, case):
    settings = OFFICIAL[case]
    before = {n: t.clone() for n, t in pipeline.unet.state_dict().items()}
    artifact = fit(pipeline, settings)
    losses, weights = official_oracle(pipeline, settings, settings.iterations or 3)  # seven images
    assert len(losses) == settings.epochs * settings.inner_steps * (settings.iterations or 3)
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-5)
    assert_same_edit(whole(artifact.tensors, before, list(weights)), weights, before)
    assert all(torch.equal(before[n], t) for n, t in pipeline.unet.state_dict().items())
    edited = erasediff.apply(pipeline, artifact, TARGET, settings).unet.state_dict()
    assert all(torch.equal(edited[n], artifact.tensors.get(n, t)) for n, t in before.items())


INTENDED = {
    "paper": short("intended", iterations=2),
    "constant": short("intended", weight_rule="constant", forget_weight=2.0, parameters="full"),
    "cosine": short("intended", weight_rule="cosine", eta=0.8),
    "value": short("intended", weight_rule="value", eta=300.0, inner_steps=2, learning_rate=1e-4, epochs=1),
}


@pytest.mark.first_case
@pytest.mark.parametrize("case", INTENDED)
def test_the_intended_mode_matches_the_oracle(pipeline, case):
    settings = INTENDED[case]
    before = {n: t.clone() for n, t in pipeline.unet.state_dict().items()}
    artifact = fit(pipeline, settings)
    losses, weights, lambdas = intended_oracle(pipeline, settings)
    # q is a small difference of two losses, and eta makes its rounding error large.
    assert artifact.meta["weights"] == pytest.approx(lambdas, rel=1e-3 if case == "value" else 1e-4)
    assert any(value > 0 for value in lambdas)
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-3 if case == "value" else 1e-5)
    assert_same_edit(whole(artifact.tensors, before, list(weights)), weights, before)


def test_the_weight_makes_the_constraint_fall_fast_enough():
    remain = [torch.tensor([1.0, -2.0]), torch.tensor([[0.5]])]
    forget = [torch.tensor([-3.0, 1.0]), torch.tensor([[2.0]])]
    inner, square = -4.0, 14.0

    def weight(name, eta, q=0.0, kept=remain):
        settings = short("intended", weight_rule=name, eta=eta)
        return erasediff.chosen_weight(kept, forget, q, settings)

    assert weight("gradient", 0.1) == pytest.approx(0.1 + 4 / 14)
    # <g_r + lambda g_q, g_q> is eta |g_q|^2 whenever lambda is positive, and more when it is zero.
    assert inner + weight("gradient", 0.7) * square == pytest.approx(0.7 * square)
    assert weight("value", 0.7, q=2.0) == pytest.approx((1.4 + 4) / 14)
    assert weight("cosine", 0.1) == pytest.approx(0.1 + 4 / math.sqrt(14 * 5.25))
    along = [-x for x in remain]
    assert weight("gradient", 0.1, kept=along) == weight("value", 0.1, kept=along) == 0.0
    none = [torch.zeros(2), torch.zeros(1, 1)]
    settings = short("intended", weight_rule="value", eta=1.0)
    assert erasediff.chosen_weight(remain, none, 1.0, settings) == 0.0


@pytest.mark.slow
def test_inner_passes_reach_the_official_result_through_the_moments_only(pipeline):
    """With a constant weight L_f's mean has no gradient. Two runs that differ in the inner draws alone differ, but not
    in the losses of the first outer step: the weights were put back before it.
    """
    settings = short("official", epochs=1, iterations=2)
    first = fit(pipeline, settings)
    student = Student(pipeline, settings)
    remain, forget, _ = student.joint(2, settings.forget_weight)  # on the untrained weights
    mean = sum(first.meta["inner_losses"][:2]) / 2
    assert first.meta["losses"][0] == pytest.approx(
        remain + settings.forget_weight * (forget - mean), rel=1e-5
    )
    plain, adam = Student(pipeline, settings), Adam(settings.learning_rate)
    for step in (6, 7):  # the last outer pass, with clean moments
        plain.apply(adam, plain.joint(step, settings.forget_weight)[2])
    base = dict(pipeline.unet.named_parameters())
    clean = error_of_change(whole(first.tensors, base, plain.names), plain.values, base)
    assert 0.05 < clean < 2.0


def test_the_official_mode_sees_one_batch_of_images(pipeline):
    settings = short("official", epochs=1)
    draws = draws_of(pipeline, settings)
    used, kept = set(draws.forget.flatten().tolist()), set(draws.remain.flatten().tolist())
    assert len(used) == len(kept) == 3

    def changed(keep_used):
        sets, start = [], {"target_images": 0, "safe_images": 0}
        for part in image_sets().sets:
            images, seen = part.images.copy(), used if part.role == "target_images" else kept
            for row in range(len(images)):
                if (start[part.role] + row in seen) != keep_used:
                    images[row] = 255 - images[row]
            start[part.role] += len(images)
            sets.append(replace(part, images=images))
        return TrainingData(tuple(sets))

    plain, same, other = (fit(pipeline, settings, data=d) for d in (None, changed(True), changed(False)))
    assert all(torch.equal(plain.tensors[n], same.tensors[n]) for n in plain.tensors)
    assert any(not torch.equal(plain.tensors[n], other.tensors[n]) for n in plain.tensors)


def test_the_intended_mode_sees_all_images(pipeline):
    draws = draws_of(pipeline, short("intended", iterations=None, epochs=1))
    assert sorted(set(draws.forget.flatten().tolist())) == list(range(7))


@pytest.mark.slow
def test_seeds_and_batches(pipeline):
    base = dict(pipeline.unet.named_parameters())
    for preset in PRESETS:
        settings = short(preset)
        names = names_of(pipeline.unet, settings)
        runs = [(settings, SEED), (settings, SEED), (settings.model_copy(update={"forward_batch": 2}), SEED)]
        runs.append((settings, SEED + 1))
        weights = [whole(fit(pipeline, s, seed).tensors, base, names) for s, seed in runs]
        assert all(torch.equal(weights[0][n], weights[1][n]) for n in names)
        assert error_of_change(weights[2], weights[0], base) < 1e-2
        assert error_of_change(weights[3], weights[0], base) > 0.2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (short("official"), 2 * 2 * 3 * (2 + 3)),
        (short("intended"), 2 * 3 * 3),
        (short("intended", weight_rule="constant", iterations=2), 4 * 3 * 3),
        (short("intended", weight_rule="value", epochs=1, inner_steps=3), 3 * (3 + 2 * 3 + 2)),
    ],
)
def test_evaluations_are_counted(pipeline, settings, expected):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    artifact = fit(pipeline, settings)
    handle.remove()  # the student is a copy of the hooked module
    assert artifact.meta["unet_evaluations"] == sum(seen) == expected


def test_rules_that_the_official_mode_cannot_reach_are_refused():
    with pytest.raises(ValidationError, match="weight_rule 'gradient' needs mode 'intended'"):
        short("official", weight_rule="gradient")


def test_a_loss_that_is_not_finite_stops_the_fit(pipeline):
    for preset in PRESETS:
        with pytest.raises(FloatingPointError, match=r"at update [12]; lower learning_rate"):
            fit(pipeline, short(preset, learning_rate=1e30))
