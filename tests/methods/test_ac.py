"""AC against an oracle with its own attention, its own optimiser and the recorded draws; its data against the
official rules.
"""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from palimpsest.methods import _anchors, ac
from palimpsest.methods._training import generator, trainable_copy
from palimpsest.methods.contract import Target, TrainingData
from palimpsest.params import read_yaml
from tests import tiny
from tests.methods.erasing import (
    PROMPTS,
    TARGET,
    Adam,
    abar,
    assert_same_edit,
    clipped,
    error_of_change,
    safe_images,
)

PRESETS = {name: ac.Settings(**values) for name, values in read_yaml("methods/ac.yaml")["presets"].items()}
SEED = 7


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def short(preset, **values):
    """A preset with four updates of three samples, strong enough to be seen."""
    quick = {"iterations": 4, "batch_size": 3, "learning_rate": 1e-5}
    return ac.Settings(**{**PRESETS[preset].model_dump(), **quick, **values})


def draws_of(settings):
    names = ("insertion", "iterations", "batch_size", "hflip", "noaug", "prior_preservation")
    recipe = _anchors.Recipe(**settings.model_dump(include=set(names)), train_timesteps=1000)
    return _anchors.draw_items(_anchors.anchors(TARGET, safe_images()), recipe, generator(SEED, "ac"))


class PlainAttention:
    """Attention written out, with keys and values of the first text position cut from the graph or not."""

    def __init__(self, cut):
        self.cut = cut

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        if self.cut and encoder_hidden_states is not None:
            k, v = (torch.cat([x[:, :1].detach(), x[:, 1:]], 1) for x in (k, v))
        parts = []
        for q1, k1, v1 in zip(*(x.chunk(attn.heads, -1) for x in (q, k, v)), strict=True):
            weights = torch.softmax(q1 @ k1.transpose(1, 2) / q1.shape[-1] ** 0.5, -1)
            parts.append(weights @ v1)
        return attn.to_out[0](torch.cat(parts, -1))


def text(pipeline, prompt):
    with torch.no_grad():
        ids = pipeline.tokenizer(prompt)["input_ids"]
        padded = torch.tensor([ids + [pipeline.tokenizer.eos_token_id] * (77 - len(ids))])
        return pipeline.text_encoder(padded).last_hidden_state


def shown(picture, place):
    """Pixels [1, 3, 16, 16] and the cells [8, 8] that count, of a picture shrunk onto grey or zoomed into."""
    side, mask = len(picture), np.ones((8, 8))
    if place is not None:
        size = (place.scale, place.scale)
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    values = picture / 127.5 - 1.0
    if place is not None and place.scale > side:
        values = values[place.top : place.top + side, place.left : place.left + side]
    elif place is not None:
        canvas = np.zeros((side, side, 3))
        canvas[place.top : place.top + place.scale, place.left : place.left + place.scale] = values
        values = canvas
        # A cell is two pixels wide; the outermost cell of the picture on each side does not count.
        for axis, start in ((0, place.top), (1, place.left)):
            inside = [start // 2 + 1 <= cell < (start + place.scale) // 2 - 1 for cell in range(8)]
            mask = mask * np.expand_dims(np.array(inside, float), 1 - axis)
    return torch.tensor(values, dtype=torch.float32).permute(2, 0, 1)[None], torch.tensor(mask)


def noised(pipeline, images, item):
    """x_t, the noise and the mask of one sample, by the definition of the forward process."""
    picture = np.ascontiguousarray(images[item.anchor][:, ::-1] if item.flip else images[item.anchor])
    pixels, mask = shown(picture, item.place)
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
    draws = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(item.seed))
    clean = 0.18215 * (posterior.mean + torch.exp(0.5 * posterior.logvar) * draws[:1])
    level = abar()[item.timestep]
    return np.sqrt(level) * clean + np.sqrt(1 - level) * draws[1:], draws[1:], mask


def oracle_loss(pipeline, unet, settings, items):
    images = np.concatenate([part.images for part in safe_images().sets])
    total, count = 0.0, settings.batch_size
    for place, item in enumerate(items):
        latents, noise, mask = noised(pipeline, images, item)
        told = torch.tensor([item.timestep])
        predicted = unet(latents, told, text(pipeline, item.concept)).sample
        if place >= count:
            total = total + settings.prior_weight * ((predicted - noise) ** 2).mean() / count
            continue
        with torch.no_grad():
            anchor = unet(latents, told, text(pipeline, item.prompt)).sample
        wanted = anchor if settings.loss == "model" else noise
        # One mask channel for four error channels. A picture that covers no whole cell adds nothing.
        total = total + (mask * (predicted - wanted) ** 2).sum() / max(float(mask.sum()), 1.0) / count
    return total


def oracle(pipeline, settings, names, draws):
    student = copy.deepcopy(pipeline.unet)
    student.set_attn_processor(PlainAttention(settings.detach_start))
    own = dict(student.named_parameters())
    for name, parameter in own.items():
        parameter.requires_grad_(name in names)
    adam, losses = Adam(settings.step_size, settings.weight_decay), []
    for items in draws:
        loss = oracle_loss(pipeline, student, settings, items)
        losses.append(loss.item())
        student.zero_grad()
        loss.backward()
        gradients = clipped({name: own[name].grad for name in names}, settings.max_grad_norm)
        for name, value in adam.update({name: own[name].detach() for name in names}, gradients).items():
            own[name].data.copy_(value)
    return losses, {name: own[name].detach() for name in names}


CASES = {
    "benchmark": short("benchmark"),
    "official recipe for inappropriate content": short("inappropriate", learning_rate=1e-6),
    "a small bound on the gradient": short("style", max_grad_norm=0.01, scale_lr=False),
    "weight decay": short("style", weight_decay=30.0),
    "noise as the target": short("style", loss="noise", prior_preservation=True, scale_lr=False),
    "start token kept": short("benchmark", detach_start=False),
    "official recipe for styles": short("style"),
    "official recipe for objects, with augmentation": short("object", iterations=5),
}


@pytest.mark.first_case
@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_match_the_oracle(pipeline, case):
    settings = CASES[case]
    before = {n: t.clone() for n, t in pipeline.unet.state_dict().items()}
    artifact = ac.fit(pipeline, TARGET, safe_images(), settings, SEED)
    losses, weights = oracle(pipeline, settings, list(artifact.tensors), draws_of(settings))
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-5)
    assert_same_edit(artifact.tensors, weights, before)
    assert all(torch.equal(before[n], t) for n, t in pipeline.unet.state_dict().items())
    edited = ac.apply(pipeline, artifact, TARGET, settings).unet.state_dict()
    assert all(torch.equal(edited[n], artifact.tensors.get(n, t)) for n, t in before.items())


def gradients(pipeline, settings, detach):
    """Gradients of the first batch's loss by the module's own code."""
    student = trainable_copy(pipeline.unet, ac.parameter_names(pipeline.unet, settings))
    if detach:
        ac.detach_start_token(student)
    from diffusers.schedulers import DDPMScheduler

    batches = ac.Batches(pipeline, _anchors.anchors(TARGET, safe_images()), settings)
    ac.loss_of(
        student, batches, draws_of(settings)[0], DDPMScheduler.from_config(pipeline.scheduler.config)
    ).backward()
    return {n: p.grad for n, p in student.named_parameters() if p.grad is not None}


def test_the_gradient_leaves_out_the_start_token(pipeline):
    settings = short("benchmark")
    names = ac.parameter_names(pipeline.unet, settings)
    found = {detach: gradients(pipeline, settings, detach) for detach in (True, False)}
    for detach, own in found.items():
        assert set(own) == set(names)
        unet = copy.deepcopy(pipeline.unet).requires_grad_(True)
        unet.set_attn_processor(PlainAttention(detach))
        oracle_loss(pipeline, unet, settings, draws_of(settings)[0]).backward()
        expected = {n: p.grad for n, p in unet.named_parameters()}
        for name in names:
            assert (own[name] - expected[name]).norm() < 1e-4 * expected[name].norm(), name
    differences = [float((found[True][n] - found[False][n]).norm() / found[False][n].norm()) for n in names]
    assert min(differences) > 1e-3


def test_trained_parameters(pipeline):
    own = dict(pipeline.unet.named_parameters())
    chosen = {name: set(ac.parameter_names(pipeline.unet, settings)) for name, settings in PRESETS.items()}
    keys = {n for n in own if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert chosen["benchmark"] == chosen["style"] == chosen["object"] == keys
    assert len(keys) == 14
    assert chosen["inappropriate"] == {n for n in own if ".attn1.to_" in n or ".attn2.to_" in n}
    assert set(ac.parameter_names(pipeline.unet, ac.Settings(parameters="full-weight"))) == set(own)


def test_step_sizes_of_the_recipes():
    assert PRESETS["benchmark"].step_size == pytest.approx(8e-6)
    assert PRESETS["inappropriate"].step_size == pytest.approx(4e-6 * 4 * 2)
    assert ac.Settings(scale_lr=False).step_size == 2e-6


def test_forms_of_insertion():
    forms = {
        kind: [_anchors.insert("a robot", "gears", "robot", kind, f) for f in range(3)]
        for kind in ("style", "inappropriate", "object")
    }
    assert forms["style"] == [
        "a robot, in the style of gears",
        "in gears's style, a robot",
        "in gears's style, a robot",
    ]
    assert forms["inappropriate"] == ["gears, a robot", "in gears style, a robot", "a robot, gears"]
    assert forms["object"] == ["a gears"] * 3


def test_keywords_take_turns_and_stay_with_their_image_and_theme():
    settings = short("benchmark", iterations=40, batch_size=5)
    themes = {theme.name: theme for theme in TARGET.themes}
    seen = {}
    for item in [item for batch in draws_of(settings) for item in batch]:
        name = "uncased" if item.anchor < 3 else "breakage"
        assert item.prompt in PROMPTS[name]
        words = [
            word
            for word in themes[name].keywords
            for form in range(3)
            if item.concept == _anchors.insert(item.prompt, word, "", "inappropriate", form)
        ]
        seen.setdefault(item.anchor, set()).update(words)
    assert set(seen) == set(range(5))
    assert all(len(words) == 1 for words in seen.values())


def test_every_image_comes_once_per_epoch_and_half_are_mirrored():
    batches = draws_of(short("benchmark", iterations=200, batch_size=5))
    assert all(sorted(item.anchor for item in batch) == list(range(5)) for batch in batches)
    flips = Counter(item.flip for batch in batches for item in batch)
    assert 400 < flips[True] < 600
    assert not any(item.flip for batch in draws_of(short("benchmark", hflip=False)) for item in batch)


def test_augmentation_places_images_and_says_so():
    found = Counter()
    for item in [item for batch in draws_of(short("style", iterations=150, noaug=False)) for item in batch]:
        scale, heads = item.place.scale, ("a far away ", "very small ", "zoomed in ", "close up ")
        assert 5 <= scale <= 16 or 19 <= scale < 22
        head = next((index for index, words in enumerate(heads) if item.concept.startswith(words)), None)
        assert (head is None) == (0.6 * 16 <= scale <= 16)
        assert head is None or (head < 2) == (scale < 0.6 * 16)
        found["large" if scale > 16 else "small"] += 1
        image = np.full((16, 16, 3), 255, dtype=np.uint8)
        pixels, mask = _anchors.placed(image, item, 2)
        assert pixels.shape == (3, 16, 16)
        assert mask.shape == (1, 8, 8)
        assert float((pixels == 1.0).float().mean()) == pytest.approx(min(scale, 16) ** 2 / 256)
        # Cells that count lie wholly inside of the picture.
        assert (
            float(torch.nn.functional.interpolate(mask[None], scale_factor=2)[0, 0][pixels[0] == 0.0].sum())
            == 0.0
        )
        assert float(mask.mean()) == 1.0 if scale > 16 else float(mask.mean()) < 1.0
    assert 0.55 < found["small"] / sum(found.values()) < 0.77


def test_augmented_recipe_trains_and_caches_change_nothing(pipeline):
    settings = short("style", noaug=False)
    fits = [
        ac.fit(
            pipeline, TARGET, safe_images(), settings.model_copy(update={"forward_batch": n}), SEED
        ).tensors
        for n in (32, 32, 1)
    ]
    assert all(torch.equal(fits[0][n], fits[1][n]) for n in fits[0])
    base = {n: p.detach() for n, p in pipeline.unet.named_parameters()}
    assert error_of_change(fits[2], fits[0], base) < 1e-2
    other = ac.fit(pipeline, TARGET, safe_images(), settings, SEED + 1).tensors
    assert error_of_change(other, fits[0], base) > 0.2


def test_data_that_does_not_fit_is_refused(pipeline):
    with pytest.raises(ValueError, match="no safe_images were given"):
        ac.fit(pipeline, TARGET, TrainingData(), short("benchmark"), SEED)
    with pytest.raises(ValueError, match="theme 'breakage' were given; the target has \\['uncased'\\]"):
        ac.fit(pipeline, Target(TARGET.themes[:1]), safe_images(), short("benchmark"), SEED)
    from dataclasses import replace

    other = Target(tuple(replace(theme, safe="lamp") for theme in TARGET.themes))
    with pytest.raises(ValueError, match="no prompt contains \\['lamp'\\]"):
        ac.fit(pipeline, other, safe_images(), short("object"), SEED)
    for insertion, words, message in (
        ("style", (" ",), "ac: keyword ' ' has no token"),
        ("object", ("robot",), "ac: keyword 'robot' is replaced by itself"),
    ):
        odd = Target((replace(TARGET.themes[0], keywords=words), TARGET.themes[1]))
        with pytest.raises(ValueError, match=message):
            ac.fit(pipeline, odd, safe_images(), short(insertion), SEED)


def test_evaluations_are_counted(pipeline):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    settings, evaluations = short("benchmark", prior_preservation=True), []
    for loss in ("model", "noise"):
        seen.clear()
        changed = settings.model_copy(update={"loss": loss})
        artifact = ac.fit(pipeline, TARGET, safe_images(), changed, SEED)
        evaluations.append((artifact.meta["unet_evaluations"], sum(seen)))
    handle.remove()  # the student is a copy of the hooked module
    assert evaluations == [(4 * (6 + 3), 4 * (6 + 3)), (4 * 6, 4 * 6)]


def test_strength_mixes_base_and_edit(pipeline):
    settings = short("benchmark", iterations=1, learning_rate=1e-3)
    artifact, base = ac.fit(pipeline, TARGET, safe_images(), settings, SEED), pipeline.unet.state_dict()

    def applied(strength):
        return ac.apply(pipeline, artifact, TARGET, settings.model_copy(update={"strength": strength}))

    assert applied(0.0) is pipeline
    half = applied(0.5).unet.state_dict()
    for name, weight in base.items():
        assert torch.allclose(half[name], (weight + artifact.tensors.get(name, weight)) / 2, atol=1e-6)
    assert any(not torch.equal(half[name], base[name]) for name in artifact.tensors)


def test_a_loss_that_is_not_finite_stops_the_fit(pipeline):
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        ac.fit(pipeline, TARGET, safe_images(), short("benchmark", learning_rate=1e30), SEED)


@pytest.mark.slow
def test_bfloat16_is_close_and_leaves_float32_weights(pipeline):
    settings = short("benchmark", loss="noise")
    exact, rough = (
        ac.fit(pipeline, TARGET, safe_images(), settings.model_copy(update={"compute": kind}), SEED)
        for kind in ("float32", "bfloat16")
    )
    assert rough.meta["losses"] != exact.meta["losses"]
    assert rough.meta["losses"] == pytest.approx(exact.meta["losses"], rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in rough.tensors.values())
