"""SalUn against an oracle that works sample by sample, with its own optimiser, ranks and recorded draws."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from palimpsest.methods import _relabel, _saliency, salun
from palimpsest.methods._relabel import Evaluation
from palimpsest.params import read_yaml
from tests import tiny
from tests.methods.erasing import TARGET, Adam, assert_same_edit, error_of_change
from tests.methods.relabelling import Formulas, gradient, image_sets, whole

PRESETS = {
    name: salun.Settings(**values) for name, values in read_yaml("methods/salun.yaml")["presets"].items()
}
SEED = 7


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def short(preset, **values):
    """A preset with three updates of three samples, strong enough to be seen."""
    quick = {"iterations": 3, "batch_size": 3, "learning_rate": 1e-5, "alpha": 0.5}
    return salun.Settings(**{**PRESETS[preset].model_dump(), **quick, **values})


def fit(pipeline, settings, seed=SEED):
    return salun.fit(pipeline, TARGET, image_sets(), settings, seed)


def draws_of(pipeline, settings):
    found = _relabel.material(pipeline, TARGET, image_sets(), settings.surrogate, settings.batch_size)
    return salun.plan_draws(found, settings, 1000, SEED)


def names_of(unet, settings):
    return [n for n, _ in unet.named_parameters() if settings.parameters == "full" or ".attn2." in n]


def oracle_saliency(pipeline, settings, draws):
    """Sum over images of the gradient of the guided denoising loss, for all parameters."""
    unet, formulas = copy.deepcopy(pipeline.unet).requires_grad_(True), Formulas(pipeline, settings.posterior)
    names, total = [name for name, _ in unet.named_parameters()], None
    for index, time, seed in zip(
        draws.images.tolist(), draws.times.tolist(), draws.seeds.tolist(), strict=True
    ):
        first, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        latents = formulas.latents("target_images", index, first)
        shown, told = formulas.noised(latents, noise, time), torch.tensor([time])
        bad = unet(shown, told, formulas.text(formulas.bad[index])).sample
        empty = unet(shown, told, formulas.text("")).sample
        guided = empty + (settings.c_guidance + 1) * (bad - empty)
        error = ((guided - formulas.asked(latents, noise, time)) ** 2).mean()
        found = gradient(unet, names, error)
        total = found if total is None else {name: total[name] + found[name] for name in names}
    return total


def oracle_mask(saliency, share):
    values = torch.cat([tensor.flatten() for tensor in saliency.values()]).abs()
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[torch.argsort(-values, stable=True)[: int(share * len(values))]] = True
    parts = chosen.split([tensor.numel() for tensor in saliency.values()])
    return {n: part.reshape(t.shape) for (n, t), part in zip(saliency.items(), parts, strict=True)}


def oracle(pipeline, settings):
    mask_draws, draws = draws_of(pipeline, settings)
    names = names_of(pipeline.unet, settings)
    masks = dict.fromkeys(names, True)
    if settings.mask_ratio is not None:
        masks = oracle_mask(oracle_saliency(pipeline, settings, mask_draws), settings.mask_ratio)
    student = copy.deepcopy(pipeline.unet).requires_grad_(True)
    formulas = Formulas(pipeline, settings.posterior, settings.surrogate)
    own, adam, losses = dict(student.named_parameters()), Adam(settings.learning_rate), []
    for update in range(len(draws.forget)):
        loss = formulas.forget(student, draws, update)
        loss = loss + settings.alpha * formulas.remain(student, draws, update)
        losses.append(loss.item())
        slopes = {name: slope * masks[name] for name, slope in gradient(student, names, loss).items()}
        for name, value in adam.update({name: own[name].detach() for name in names}, slopes).items():
            own[name].data.copy_(value)
    return losses, {name: own[name].detach() for name in names}, masks


CASES = {
    "paper": short("paper"),
    "official order, two passes": short("official", iterations=None, epochs=2, batch_size=4),
    "cross-attention": short("paper", parameters="xattn", mask_ratio=0.2),
    "no mask, unsafe images only": short("paper", mask_ratio=None, alpha=0.0, surrogate="a red lamp"),
    "means of the posterior": short("paper", posterior="mean", mask_images=4),
}


@pytest.mark.first_case
@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_match_the_oracle(pipeline, case):
    settings = CASES[case]
    before = {n: t.clone() for n, t in pipeline.unet.state_dict().items()}
    artifact = fit(pipeline, settings)
    losses, weights, masks = oracle(pipeline, settings)
    assert len(losses) == (4 if settings.epochs == 2 else 3)
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-5)
    names = names_of(pipeline.unet, settings)
    assert_same_edit(whole(artifact.tensors, before, names), weights, before)
    assert all(torch.equal(before[n], t) for n, t in pipeline.unet.state_dict().items())
    edited = salun.apply(pipeline, artifact, TARGET, settings).unet.state_dict()
    assert all(torch.equal(edited[n], artifact.tensors.get(n, t)) for n, t in before.items())
    if settings.mask_ratio is not None:
        # A weight outside of the mask keeps every bit; a few at its border may differ by rounding.
        moved = sum(int((edited[n] != before[n])[~masks[n]].sum()) for n in names)
        assert moved <= 2e-4 * sum(t.numel() for t in before.values())
        assert artifact.meta["trained_parameters"] == pytest.approx(
            sum(int(masks[n].sum()) for n in names), abs=0 if settings.parameters == "full" else 50
        )


def test_the_mask_is_the_half_with_the_largest_gradients(pipeline):
    settings = short("paper")
    draws, _ = draws_of(pipeline, settings)
    assert draws.images.tolist() == list(range(7))
    found = _relabel.material(pipeline, TARGET, image_sets(), None, 3)
    how = Evaluation("float32", 4)
    gradients = _saliency.gradients(pipeline, found, draws, settings.c_guidance, settings.posterior, how)
    expected = oracle_saliency(pipeline, settings, draws)
    assert list(gradients) == list(expected)
    scale = 7.0  # ours is a mean over images
    zero = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    assert error_of_change({n: g * scale for n, g in gradients.items()}, expected, zero) < 1e-5
    masks, wanted = _saliency.largest(gradients, 0.5), oracle_mask(expected, 0.5)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total // 2
    border = torch.cat([expected[n][wanted[n]].abs() for n in expected]).min()
    for name, mask in masks.items():
        odd = mask != wanted[name]
        assert bool(((expected[name][odd].abs() / border - 1).abs() < 1e-3).all())


def test_the_mask_follows_its_settings(pipeline):
    found = _relabel.material(pipeline, TARGET, image_sets(), None, 3)

    def mask(batch=32, posterior="samples", guidance=7.5, **values):
        settings = short("paper", **values)
        draws = salun.plan_draws(found, settings, 1000, SEED)[0]
        how = Evaluation("float32", batch)
        gradients = _saliency.gradients(pipeline, found, draws, guidance, posterior, how)
        return torch.cat([m.flatten() for m in _saliency.largest(gradients, 0.5).values()])

    first = mask()
    assert float((mask(batch=3) != first).double().mean()) < 1e-4
    for other in (mask(guidance=0.0), mask(posterior="mean"), mask(mask_images=3)):
        assert float((other != first).double().mean()) > 0.01


@pytest.mark.slow
def test_a_checkpoint_that_predicts_velocity(pipeline):
    scheduler = type(pipeline.scheduler).from_config(
        {**pipeline.scheduler.config, "prediction_type": "v_prediction"}
    )
    other, settings = replace(pipeline, scheduler=scheduler), short("paper", iterations=2)
    losses, _, masks = oracle(other, settings)
    artifact = fit(other, settings)
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-5)
    base = pipeline.unet.state_dict()
    moved = sum(int((t != base[n])[~masks[n]].sum()) for n, t in artifact.tensors.items())
    assert moved <= 2e-4 * artifact.meta["trained_parameters"]


@pytest.mark.slow
def test_seeds_and_batches(pipeline):
    settings, base = short("paper"), dict(pipeline.unet.named_parameters())
    first, again, parts, other = (
        fit(pipeline, settings),
        fit(pipeline, settings),
        fit(pipeline, settings.model_copy(update={"forward_batch": 2})),
        fit(pipeline, settings, SEED + 1),
    )
    names = names_of(pipeline.unet, settings)
    weights = [whole(a.tensors, base, names) for a in (first, again, parts, other)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in names)
    assert error_of_change(weights[2], weights[0], base) < 1e-2
    assert error_of_change(weights[3], weights[0], base) > 0.2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 3 * 3 * 3 + 2 * 7),
        ({"alpha": 0.0, "mask_images": 2}, 3 * 3 * 2 + 2 * 2),
        ({"mask_ratio": None}, 27),
    ],
)
def test_evaluations_are_counted(pipeline, changes, expected):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    artifact = fit(pipeline, short("paper", **changes))
    handle.remove()  # students are copies of the hooked module
    assert artifact.meta["unet_evaluations"] == sum(seen) == expected


def test_the_stored_change_gives_the_same_images(pipeline):
    settings = short("paper", learning_rate=1e-3)
    base, names = dict(pipeline.unet.named_parameters()), names_of(pipeline.unet, settings)
    exact, half = (
        salun.apply(pipeline, fit(pipeline, s), TARGET, s).unet.state_dict()
        for s in (settings, settings.model_copy(update={"stored": "float16"}))
    )
    assert error_of_change(*({n: w[n] for n in names} for w in (half, exact)), base) < 1e-3
    kept = {n: exact[n] == base[n] for n in names}
    assert all(torch.equal(half[n][kept[n]], base[n][kept[n]]) for n in names)


@pytest.mark.slow
def test_bfloat16_is_close_and_leaves_float32_weights(pipeline):
    settings = short("paper", alpha=1.0, iterations=1, mask_images=2)
    exact, rough = (
        fit(pipeline, settings.model_copy(update={"compute": kind})) for kind in ("float32", "bfloat16")
    )
    assert rough.meta["losses"] != exact.meta["losses"]
    assert rough.meta["losses"] == pytest.approx(exact.meta["losses"], rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in rough.tensors.values())


def test_a_loss_that_is_not_finite_stops_the_fit(pipeline):
    with pytest.raises(FloatingPointError, match="at update 1; lower learning_rate"):
        fit(pipeline, short("paper", learning_rate=1e30))
