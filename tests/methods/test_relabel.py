"""What SalUn and EraseDiff share: captions, checks of the input, order of the images, and how artifacts are stored."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from palimpsest.methods import _relabel, _saliency, _stored
from palimpsest.methods._training import generator, trainable_copy, trained
from palimpsest.methods.contract import Target, ThemeTarget, TrainingData
from tests import tiny
from tests.methods.erasing import TARGET
from tests.methods.relabelling import HARMLESS, UNSAFE, image_sets

THEME = ThemeTarget("breakage", ("crack", "cracks", "leaking oil"), "a whole \\1 robot")


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def material(pipeline, target=TARGET, data=None, size=2, surrogate=None):
    return _relabel.material(pipeline, target, data or image_sets(), surrogate, size)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("crack", "a whole \\1 robot"),
        ("a photo of Cracks on the beach", "a photo of a whole \\1 robot on the beach"),
        ("leaking oil at night", "a whole \\1 robot at night"),
        ("cracked walls", "a whole \\1 robot"),
        ("a crack in a crack", "a a whole \\1 robot in a a whole \\1 robot"),
    ],
)
def test_the_surrogate_takes_the_place_of_the_keyword(prompt, expected):
    assert _relabel.relabelled(prompt, THEME, None) == expected


def test_one_surrogate_for_all():
    assert _relabel.relabelled("a crack", THEME, "photo of {safe}") == "photo of a whole \\1 robot"


def test_material_joins_the_sets_in_order(pipeline):
    found = material(pipeline)
    assert found.bad == sum(UNSAFE.values(), ())
    assert found.good == sum(HARMLESS, ())
    sets = image_sets().sets
    assert np.array_equal(found.forget, np.concatenate([sets[0].images, sets[1].images]))
    assert np.array_equal(found.remain, np.concatenate([sets[2].images, sets[3].images]))
    assert found.own == sets[2].prompts + sets[3].prompts


def themes(**changes):
    return Target((replace(TARGET.themes[0], **changes), TARGET.themes[1]))


def without(role):
    return TrainingData(tuple(part for part in image_sets().sets if part.role != role))


def test_input_that_cannot_work_is_refused(pipeline):
    with pytest.raises(ValueError, match="keyword 'Robot' of theme 'uncased' is its own surrogate"):
        material(pipeline, themes(keywords=("gears", "Robot")))
    with pytest.raises(ValueError, match="theme 'uncased': ' ' has no tokens"):
        material(pipeline, themes(keywords=("gears", " ")))
    with pytest.raises(ValueError, match="theme 'uncased': '' has no tokens"):
        material(pipeline, themes(safe=""))
    with pytest.raises(ValueError, match="no target_images were given"):
        material(pipeline, data=without("target_images"))
    with pytest.raises(ValueError, match="no safe_images were given"):
        material(pipeline, data=without("safe_images"))
    with pytest.raises(ValueError, match="5 safe_images are fewer than a batch of 6"):
        material(pipeline, size=6)
    with pytest.raises(
        ValueError, match=r"target_images of themes \['breakage'\] were given; the target has \['unc"
    ):
        material(pipeline, Target(TARGET.themes[:1]))
    harmless = tuple(replace(part, prompts=("robot",) * len(part.prompts)) for part in image_sets().sets[::2])
    with pytest.raises(
        ValueError, match="captions of all 4 target images are harmless already, such as 'robot'"
    ):
        material(pipeline, data=TrainingData(harmless))


def test_captions_without_a_keyword_are_reported(pipeline, caplog):
    first, *others = image_sets().sets
    data = TrainingData((replace(first, prompts=("robot", *first.prompts[1:])), *others))
    with caplog.at_level(logging.WARNING):
        assert material(pipeline, data=data).good[0] == "robot"
    assert "1 of 7 target images have a caption without a keyword" in caplog.text


def test_a_unet_without_text_is_refused(pipeline):
    from diffusers.models import UNet2DModel

    plain = UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match="not conditioned on text"):
        material(replace(pipeline, unet=plain))


def draws(order, updates=50, counts=(7, 5), batch=3, seed=0):
    return _relabel.draw(counts, (updates, batch), order, 1000, generator(seed, "test"))


def test_a_shuffled_order_shows_every_image_once_per_pass():
    found = draws("shuffled")
    for tensor, count in ((found.forget, 7), (found.remain, 5)):
        stream = tensor.flatten()[: 150 // count * count].reshape(-1, count)
        assert all(sorted(row) == list(range(count)) for row in stream.tolist())
        assert len({tuple(row) for row in stream.tolist()}) > 10
    assert found.forget_times.min() < 50
    assert found.forget_times.max() > 950
    assert not torch.equal(found.forget_times, found.remain_times)
    assert len(found.forget_seeds.unique()) == len(found.remain_seeds.unique()) == 150
    assert not torch.equal(draws("shuffled", seed=1).forget, found.forget)


def test_the_given_order_starts_anew_with_every_pass_over_the_unsafe_images():
    found = draws("given", updates=4)
    assert found.forget.tolist() == [[0, 1, 2], [3, 4, 5], [6, 0, 1], [0, 1, 2]]
    assert found.remain.tolist() == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [0, 1, 2]]


def test_the_first_batch_alone():
    found = draws("first")
    assert all(torch.equal(row, found.forget[0]) for row in found.forget)
    assert len(found.forget[0].unique()) == len(found.remain[0].unique()) == 3
    assert len(found.forget_seeds.unique()) == 150
    assert not torch.equal(draws("first", seed=1).forget, found.forget)


@pytest.mark.parametrize("share", [0.5, 0.1, 1.0, 1 / 9])
def test_the_largest_entries_are_exact_also_with_ties(share):
    random = torch.Generator().manual_seed(4)
    gradients = {
        "a": torch.randn(40, 50, generator=random) * 1e-6,
        "b": torch.randn(7, generator=random).mul(4).round(),  # ties
        "c": torch.zeros(30, 3),  # ties at zero, and a share of one takes them all
        "d": torch.randn(3, 400, generator=random) ** 9,  # thirty orders of magnitude
    }
    gradients["a"][5] = gradients["a"][4]
    masks = _saliency.largest(gradients, share)
    values = torch.cat([tensor.flatten() for tensor in gradients.values()]).abs()
    ranks = torch.argsort(torch.argsort(-values, stable=True))
    wanted = ranks < int(share * len(values))
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), wanted)
    assert all(masks[name].shape == tensor.shape for name, tensor in gradients.items())


def test_a_share_of_less_than_one_entry_takes_none():
    assert not _saliency.largest({"a": torch.ones(5)}, 0.1)["a"].any()


@pytest.fixture(scope="module")
def student(pipeline):
    """A UNet with some parameters changed by 1e-7 to 1, and others not."""
    names = [name for name, _ in pipeline.unet.named_parameters() if "attn1" in name]
    copied, random = trainable_copy(pipeline.unet, names), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for place, parameter in enumerate(list(trained(copied).values())[1:]):
            change = torch.randn(parameter.shape, generator=random) * 10.0 ** -(place % 8)
            parameter += change * (torch.rand(parameter.shape, generator=random) < 0.5)
    return copied


def test_weights_are_stored_exactly_and_changes_in_half_the_space(pipeline, student):
    base, own = pipeline.unet.state_dict(), trained(student)
    exact, half = (_stored.stored(student, pipeline.unet, kind) for kind in ("float32", "float16"))
    first = next(iter(own))  # the one left as it was
    assert set(exact) == set(own) - {first}
    assert set(half) == {f"change.{name}" for name in exact}
    assert sum(t.nbytes for t in half.values()) * 2 == sum(t.nbytes for t in exact.values())
    for tensors, tolerance in ((exact, 0.0), (half, 2**-11)):
        edited = _stored.with_stored(pipeline, tensors, 1.0).unet.state_dict()
        for name, value in base.items():
            wanted = own[name].detach() if name in own else value
            # Half precision keeps 11 bits of a change, and nothing below 2^-25; then comes float32's own rounding.
            bound = (wanted - value).abs() * tolerance + (2**-25 + wanted.abs() * 2**-23) * (tolerance > 0)
            assert bool(((edited[name] - wanted).abs() <= bound).all()), name
            same = wanted == value
            assert torch.equal(edited[name][same], value[same])


def test_strength_scales_a_stored_change(pipeline, student):
    half = _stored.stored(student, pipeline.unet, "float16")
    assert _stored.with_stored(pipeline, half, 0.0) is pipeline
    third = _stored.with_stored(pipeline, half, -0.5).unet.state_dict()
    for key, change in half.items():
        base = pipeline.unet.state_dict()[key.removeprefix("change.")]
        assert torch.equal(third[key.removeprefix("change.")], base - 0.5 * change.float())


def test_changes_that_do_not_fit_are_refused(pipeline, student):
    with pytest.raises(ValueError, match="no tensor 'nowhere.weight'"):
        _stored.with_stored(pipeline, {"change.nowhere.weight": torch.zeros(2)}, 1.0)
    with pytest.raises(ValueError, match="does not fit"):
        _stored.with_stored(pipeline, {"change.conv_in.bias": torch.zeros(3)}, 1.0)
    names = [next(iter(trained(student)))]
    large = trainable_copy(pipeline.unet, names)
    with torch.no_grad():
        trained(large)[names[0]].add_(1e5)
    with pytest.raises(ValueError, match="set stored: float32"):
        _stored.stored(large, pipeline.unet, "float16")
