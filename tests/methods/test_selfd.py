"""SelfD against an oracle that runs the UNet block by block, with its own optimiser and the recorded draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from palimpsest.methods import selfd
from palimpsest.methods._training import generator
from palimpsest.methods.contract import Artifact, ImageSet, Target, TrainingData
from palimpsest.params import read_yaml
from palimpsest.sampling.loop import Request, generate
from palimpsest.sampling.pipeline import Step
from palimpsest.specs import Sampler
from tests import tiny
from tests.methods.erasing import PROMPTS, TARGET, Adam, abar, assert_same_edit, error_of_change, safe_images

PRESETS = {
    name: selfd.Settings(**values) for name, values in read_yaml("methods/selfd.yaml")["presets"].items()
}
SEED = 3
SHAPE = (64, 4, 4)


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def short(preset, **values):
    """A preset with a few updates of two images, in small steps: Adam makes a whole step of a rounding error."""
    quick = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-5}
    return selfd.Settings(**{**PRESETS[preset].model_dump(), **quick, **values})


def fit(pipeline, settings, seed=SEED):
    return selfd.fit(pipeline, TARGET, safe_images(), settings, seed)


def blocks(unet, latents, timesteps, text, change):
    """The UNet written out: `change` is applied to the output of the middle block."""
    time = unet.time_embedding(unet.time_proj(timesteps))
    hidden = unet.conv_in(latents)
    skipped = [hidden]
    for block in unet.down_blocks:
        hidden, passed = block(hidden, temb=time, encoder_hidden_states=text)
        skipped += passed
    hidden = change(unet.mid_block(hidden, time, encoder_hidden_states=text))
    for block in unet.up_blocks:
        count = len(block.resnets)
        passed, skipped = skipped[-count:], skipped[:-count]
        hidden = block(hidden, temb=time, res_hidden_states_tuple=tuple(passed), encoder_hidden_states=text)
    return unet.conv_out(torch.nn.functional.silu(unet.conv_norm_out(hidden)))


def text(pipeline, prompts, length):
    """Embeddings of a batch, padded to `length` tokens or to its own longest prompt."""
    ids = [pipeline.tokenizer(prompt)["input_ids"] for prompt in prompts]
    length = length or max(map(len, ids))
    padded = [row + [pipeline.tokenizer.eos_token_id] * (length - len(row)) for row in ids]
    with torch.no_grad():
        return pipeline.text_encoder(torch.tensor(padded)).last_hidden_state


def noised(pipeline, image, timestep, seed):
    """x_t [1, C, h, w] and its noise, by the definition of the forward process."""
    pixels = torch.tensor(image / 127.5 - 1.0, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
    draws = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    clean = 0.18215 * (posterior.mean + torch.exp(0.5 * posterior.logvar) * draws[:1])
    return np.sqrt(abar()[timestep]) * clean + np.sqrt(1 - abar()[timestep]) * draws[1:], draws[1:]


def captions(settings):
    if settings.caption == "prompt":
        return [prompt for prompts in PROMPTS.values() for prompt in prompts]
    return ["a gears", "red gear on a robot", "a blue gear on a tree", "a crack", "the red static"]


def oracle(pipeline, settings, draws, start):
    """Losses and vectors after all updates."""
    images = np.concatenate([part.images for part in safe_images().sets])
    owner = [0, 0, 0, 1, 1] if settings.vectors == "theme" else [0] * 5
    vectors = {str(k): vector.clone() for k, vector in enumerate(start)}
    adam, losses = Adam(settings.learning_rate), []
    for batch in draws:
        rows = batch.rows.tolist()
        pairs = [
            noised(pipeline, images[r], t, s)
            for r, t, s in zip(rows, batch.timesteps.tolist(), batch.seeds.tolist(), strict=True)
        ]
        latents, noise = (torch.cat(part) for part in zip(*pairs, strict=True))
        length = None if settings.pad == "longest" else 77
        words = text(pipeline, [captions(settings)[r] for r in rows], length)
        leaves = {k: v.clone().requires_grad_(True) for k, v in vectors.items()}
        own = torch.stack([leaves[str(owner[r])] for r in rows])
        predicted = blocks(pipeline.unet, latents, batch.timesteps, words, lambda mid, own=own: mid + own)
        loss = ((predicted - noise) ** 2).mean()
        losses.append(loss.item())
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        filled = [torch.zeros(SHAPE) if slope is None else slope for slope in slopes]
        vectors = adam.update(vectors, dict(zip(leaves, filled, strict=True)))
    return losses, vectors


@pytest.mark.first_case
@pytest.mark.parametrize("preset", PRESETS)
def test_losses_and_vectors_match_the_oracle(pipeline, preset):
    settings = short(preset)
    artifact = fit(pipeline, settings)
    names = ["uncased", "breakage"] if settings.vectors == "theme" else ["joint"]
    assert list(artifact.tensors) == names
    draws = selfd.draw(settings, 5, 1000, generator(SEED, "selfd"))
    start = selfd.initial(pipeline, names, settings.init_range, generator(SEED, "selfd/vectors"))
    losses, vectors = oracle(pipeline, settings, draws, start)
    assert len(losses) == 6
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-5)
    expected = dict(zip(names, vectors.values(), strict=True))
    assert_same_edit(artifact.tensors, expected, dict(zip(names, start, strict=True)))


def test_gradients_pass_the_up_blocks_only(pipeline):
    seen = []
    watched = {"down": pipeline.unet.down_blocks[-1], "up": pipeline.unet.up_blocks[0]}
    handles = [
        block.register_forward_hook(
            lambda module, inputs, output, name=name: seen.append(
                (name, (output if torch.is_tensor(output) else output[0]).requires_grad)
            )
        )
        for name, block in watched.items()
    ]
    fit(pipeline, short("official", iterations=2))
    for handle in handles:
        handle.remove()
    assert set(seen) == {("down", False), ("up", True)}
    assert not pipeline.unet.mid_block._forward_hooks
    assert all(p.grad is None for p in pipeline.unet.parameters())


def test_the_vector_enters_the_rows_of_the_prompt_and_no_others(pipeline):
    draws = torch.Generator().manual_seed(0)
    latents, words = torch.randn(6, 4, 8, 8, generator=draws), torch.randn(6, 77, 32, generator=draws)
    vector = torch.randn(SHAPE, generator=draws)
    told = torch.tensor(300)
    plain = pipeline.unet(latents, told, words).sample
    rows = {"uncond": slice(0, 2), "cond": slice(2, 4), "safety": slice(4, 6)}
    for chosen in (("cond",), ("uncond", "cond")):
        step = Step(0, 1, told, tuple(rows))
        with selfd.Direction(vector, chosen).around(pipeline.unet, step):
            found = pipeline.unet(latents, told, words).sample
        marks = torch.zeros(6, 1, 1, 1)
        for name in chosen:
            marks[rows[name]] = 1.0
        expected = blocks(
            pipeline.unet, latents, told.expand(6), words, lambda mid, marks=marks: mid + marks * vector
        )
        assert torch.allclose(found, expected, atol=1e-5)
        for name, part in rows.items():
            assert torch.equal(found[part], plain[part]) == (name not in chosen)
    # Without guidance there is one branch, and all its rows are of the prompt.
    with selfd.Direction(vector, ("cond",)).around(pipeline.unet, Step(0, 1, told, ("cond",))):
        assert not torch.allclose(pipeline.unet(latents, told, words).sample, plain, atol=1e-2)
    assert torch.equal(pipeline.unet(latents, told, words).sample, plain)


def picture(pipeline):
    sampler = Sampler(name="ddim", steps=3, guidance=4.0)
    asked = [Request("a", "a robot with gears", 5), Request("b", "the house", 6)]
    return np.stack([g.image for g in generate(pipeline, asked, sampler, 16)]).astype(int)


def test_themes_add_up_and_strength_scales(pipeline):
    draws = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, *SHAPE, generator=draws)
    both = Artifact({"uncased": first, "breakage": second})
    settings = selfd.Settings()
    assert selfd.apply(pipeline, both, TARGET, selfd.Settings(strength=0.0)) is pipeline
    summed = selfd.apply(pipeline, Artifact({"joint": first + second}), TARGET, settings)
    images = picture(selfd.apply(pipeline, both, TARGET, settings))
    assert np.array_equal(images, picture(summed))
    doubled = selfd.apply(pipeline, both, TARGET, selfd.Settings(strength=2.0))
    twice = Artifact({name: 2 * vector for name, vector in both.tensors.items()})
    assert np.array_equal(picture(doubled), picture(selfd.apply(pipeline, twice, TARGET, settings)))
    one = selfd.apply(pipeline, both, Target(TARGET.themes[:1]), settings)
    assert torch.equal(one.hooks[0].vector, first)
    base = picture(pipeline)
    distance = [
        np.abs(picture(selfd.apply(pipeline, both, TARGET, selfd.Settings(strength=s))) - base).mean()
        for s in (0.1, 0.3, 1.0)
    ]
    assert 0 < distance[0] < distance[1] < distance[2]
    with pytest.raises(ValueError, match="the target needs \\['breakage'\\]"):
        selfd.apply(pipeline, Artifact({"uncased": first}), TARGET, settings)


def test_every_image_comes_once_per_epoch():
    settings = selfd.Settings(epochs=3, batch_size=4)
    batches = selfd.draw(settings, 10, 1000, generator(0, "test"))
    assert [len(batch.rows) for batch in batches] == [4, 4, 2] * 3
    assert Counter(row for batch in batches for row in batch.rows.tolist()) == dict.fromkeys(range(10), 3)
    assert len({seed for batch in batches for seed in batch.seeds.tolist()}) == 30
    orders = [torch.cat([batch.rows for batch in batches[k : k + 3]]).tolist() for k in (0, 3, 6)]
    assert len({tuple(order) for order in orders}) == 3
    for count in (2, 3, 7):
        cut = selfd.draw(settings.model_copy(update={"iterations": count}), 10, 1000, generator(0, "test"))
        assert len(cut) == count
        assert all(torch.equal(a.rows, b.rows) for a, b in zip(cut, batches, strict=False))


def test_start_of_the_vectors(pipeline):
    start = selfd.initial(pipeline, ["a", "b"], 0.1, generator(0, "test"))
    assert start.shape == (2, *SHAPE)
    assert 0.099 < float(start.abs().max()) <= 0.1
    assert abs(float(start.mean())) < 0.003
    assert not selfd.initial(pipeline, ["a"], 0.0, generator(0, "test")).any()


def mean_loss(pipeline, draws, vectors):
    """The mean loss of given batches of one image each, by the oracle's UNet."""
    images = np.concatenate([part.images for part in safe_images().sets])
    words, total = captions(selfd.Settings()), 0.0
    with torch.no_grad():
        for batch in draws:
            (row,), (told,), (seed,) = (part.tolist() for part in (batch.rows, batch.timesteps, batch.seeds))
            latents, noise = noised(pipeline, images[row], told, seed)
            vector = vectors["uncased" if row < 3 else "breakage"]
            said = text(pipeline, [words[row]], None)
            found = blocks(pipeline.unet, latents, batch.timesteps, said, lambda mid, v=vector: mid + v)
            total += float(((found - noise) ** 2).mean())
    return total / len(draws)


@pytest.mark.slow
def test_training_lowers_the_loss_it_is_for(pipeline):
    settings = short("official", epochs=12, batch_size=1, learning_rate=0.02)
    draws = selfd.draw(settings, 5, 1000, generator(SEED, "selfd"))
    names = ["uncased", "breakage"]
    start = selfd.initial(pipeline, names, settings.init_range, generator(SEED, "selfd/vectors"))
    before = mean_loss(pipeline, draws, dict(zip(names, start, strict=True)))
    after = mean_loss(pipeline, draws, fit(pipeline, settings).tensors)
    assert after < 0.99 * before


@pytest.mark.slow
def test_seeds_and_the_size_of_forward_batches(pipeline):
    fits = [
        fit(pipeline, short("official", forward_batch=size), seed).tensors
        for size, seed in ((32, 1), (32, 1), (2, 1), (32, 2))
    ]
    base = {name: torch.zeros(SHAPE) for name in fits[0]}
    assert error_of_change(fits[1], fits[0], base) == 0.0
    assert error_of_change(fits[2], fits[0], base) < 1e-4
    assert error_of_change(fits[3], fits[0], base) > 0.5


def test_evaluations_are_counted(pipeline):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    artifact = fit(pipeline, short("official"))
    handle.remove()
    assert artifact.meta["unet_evaluations"] == sum(seen) == 2 * 5


def test_data_that_does_not_fit_is_refused(pipeline):
    with pytest.raises(ValueError, match="no safe_images were given"):
        selfd.fit(pipeline, TARGET, TrainingData(), short("official"), SEED)
    with pytest.raises(ValueError, match="of \\['breakage', 'uncased'\\] were given, the target has \\['unc"):
        selfd.fit(pipeline, Target(TARGET.themes[:1]), safe_images(), short("official"), SEED)
    none = ImageSet("breakage", "safe_images", np.zeros((0, 16, 16, 3), np.uint8), ())
    with pytest.raises(ValueError, match="no safe images of \\['breakage'\\]"):
        selfd.fit(pipeline, TARGET, TrainingData((safe_images().sets[0], none)), short("official"), SEED)
    with pytest.raises(ValueError, match="side 16, the UNet is made for 8"):
        selfd.fit(pipeline, TARGET, safe_images(32), short("official"), SEED)


def test_a_vector_of_another_size_is_refused(pipeline):
    hooked = selfd.apply(
        pipeline, Artifact({"joint": torch.zeros(64, 8, 8)}), TARGET, selfd.Settings(strength=1.0)
    )
    with pytest.raises(ValueError, match="at the resolution it was learned at"):
        picture(hooked)


def test_captions_with_a_keyword():
    theme = replace(TARGET.themes[0], safe="robot")
    made = [selfd.caption("a robot", theme, place, selfd.Settings(caption="keyword")) for place in range(4)]
    assert made == ["a gears", "a gear on a robot", "a blue gear", "a gears"]
    assert selfd.caption("a lamp", theme, 1, selfd.Settings(caption="keyword")) == "gear on a robot"
    assert selfd.caption("a robot", theme, 1, selfd.Settings()) == "a robot"


def test_a_loss_that_is_not_finite_stops_the_fit(pipeline):
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        fit(pipeline, short("official", learning_rate=1e30, epochs=4))


def test_bfloat16_is_close_and_leaves_float32_vectors(pipeline):
    exact, rough = (
        fit(pipeline, short("official", compute=kind, iterations=3)) for kind in ("float32", "bfloat16")
    )
    assert rough.meta["losses"] != exact.meta["losses"]
    assert rough.meta["losses"] == pytest.approx(exact.meta["losses"], rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in rough.tensors.values())
