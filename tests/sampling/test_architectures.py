"""Checkpoints of Stable Diffusion v2 and XL: how they are recognised, and that their images are those of diffusers."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch

from palimpsest.params import Model, Sampler
from palimpsest.sampling import schedulers
from palimpsest.sampling.architecture import architecture_of
from palimpsest.sampling.embeddings import (
    encode,
    encode_cached,
    encode_with_unconditional,
    shortened,
    states_of,
    unconditional_cached,
)
from palimpsest.sampling.load import MissingModel, cast, load_pipeline, load_unet
from palimpsest.sampling.loop import Request, denoise, generate
from palimpsest.sampling.noise import initial_noise
from palimpsest.sampling.pipeline import Conditioning
from palimpsest.sampling.trajectory import partial_denoise
from tests import layouts, tiny

WORDS = ("a robot", "red house", "", "blue lamp on the tree, a photo of static! and gears")
REQUESTS = [Request(f"r{i}", prompt, 100 + i) for i, prompt in enumerate(WORDS)]
# A call of a diffusers pipeline that gives latents of a small picture.
LATENTS = {
    "num_inference_steps": 3,
    "guidance_scale": 5.0,
    "height": 16,
    "width": 16,
    "output_type": "latent",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    return {
        "sd1": tiny.save(tiny.build(), root / "sd1"),
        "sd2": layouts.sd2(root / "sd2"),
        "sdxl": layouts.sdxl(root / "sdxl"),
    }


def loaded(folder, kind, **kwargs):
    return load_pipeline(Model(path=str(folder), resolution=16, architecture=kind), **kwargs)


@pytest.fixture(scope="module")
def pipelines(folders):
    return {kind: loaded(folder, kind) for kind, folder in folders.items()}


def their_class(kind):
    import diffusers

    return diffusers.StableDiffusionXLPipeline if kind == "sdxl" else diffusers.StableDiffusionPipeline


@cache
def their_pipeline(folder, kind):
    found = their_class(kind).from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def theirs(folder, kind, name, steps):
    found = their_pipeline(folder, kind)
    found.scheduler = schedulers.build(name, found.scheduler.config, steps)
    return found


def our_latents(pipeline, sampler, requests=REQUESTS):
    """Clean latents of a batch before they are scaled for the decoder."""
    scheduler = schedulers.build(sampler.name, pipeline.scheduler.config, sampler.steps)
    noise = torch.stack([initial_noise(r.seed, (4, 8, 8)) for r in requests])
    texts = {
        "uncond": unconditional_cached(pipeline).expand(len(requests), -1, -1),
        "cond": encode_cached(pipeline, [r.prompt for r in requests]),
    }
    given = Conditioning(tuple(WORDS), texts, noise * scheduler.init_noise_sigma)
    return denoise(pipeline, given, scheduler, sampler.guidance)[0]


CASES = [("sd2", name, 5.0) for name in ("pndm", "ddim", "dpmsolver++")]
CASES += [("sdxl", name, 5.0) for name in ("pndm", "ddim", "dpmsolver++", "euler")]
CASES += [("sd2", "ddim", 1.0), ("sdxl", "ddim", 1.0)]


@pytest.mark.parametrize(("kind", "name", "guidance"), CASES)
def test_a_batch_is_what_diffusers_makes_one_image_at_a_time(folders, pipelines, kind, name, guidance):
    sampler = Sampler(name=name, steps=6, guidance=guidance)
    pipe = theirs(folders[kind], kind, name, 6)
    call = {"num_inference_steps": 6, "guidance_scale": guidance, "height": 16, "width": 16}
    expected = []
    for request in REQUESTS:
        generator = torch.Generator().manual_seed(request.seed)
        made = pipe(request.prompt, generator=generator, output_type="latent", **call).images
        expected.append(made[0])
    ours = our_latents(pipelines[kind], sampler)
    expected = torch.stack(expected)
    assert ours.std() > 0.1
    assert ours[0].sub(ours[1]).abs().max() > 0.05
    assert (ours - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_pictures_are_those_of_diffusers(folders, pipelines, kind):
    made = generate(pipelines[kind], REQUESTS, Sampler(name="ddim", steps=4, guidance=5.0), 16)
    ours = np.stack([g.image for g in made]) / 255
    pipe = theirs(folders[kind], kind, "ddim", 4)
    call = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 16, "width": 16, "output_type": "np"}
    generators = [torch.Generator().manual_seed(r.seed) for r in REQUESTS]
    expected = pipe(list(WORDS), generator=generators, **call).images
    assert ours.std() > 0.05
    assert np.abs(ours - expected).max() <= 1 / 255


def test_guidance_takes_zeros_or_the_empty_prompt_as_the_checkpoint_says(folders, pipelines, tmp_path):
    shutil.copytree(folders["sdxl"], tmp_path / "other")
    index(tmp_path / "other", force_zeros_for_empty_prompt=False)
    other = loaded(tmp_path / "other", "sdxl")
    assert not unconditional_cached(pipelines["sdxl"]).any()
    assert torch.equal(unconditional_cached(other), encode(other, [""]))
    sampler = Sampler(name="ddim", steps=3, guidance=5.0)
    pipe = theirs(tmp_path / "other", "sdxl", "ddim", 3)
    noise = initial_noise(100, (4, 8, 8))[None]
    expected = pipe("a robot", latents=noise, **LATENTS).images
    ours = our_latents(other, sampler, REQUESTS[:1])
    assert (ours - expected).abs().max() < 1e-4
    assert (ours - our_latents(pipelines["sdxl"], sampler, REQUESTS[:1])).abs().max() > 1e-2
    both = encode_with_unconditional(pipelines["sdxl"], ["a robot"])
    assert not both[0].any()
    assert (both[1:] - encode(pipelines["sdxl"], ["a robot"])).abs().max() < 1e-5


def test_the_unet_is_told_the_size_of_the_picture(folders, pipelines):
    used = pipelines["sdxl"]
    seen = []
    handle = used.unet.add_time_proj.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].tolist())
    )
    list(generate(used, REQUESTS[:1], Sampler(name="ddim", steps=1, guidance=1.0), 32))
    partial_denoise(
        used, encode(used, ["a robot"]), encode(used, [""]), torch.zeros(1, 4, 4, 8), [1], Sampler(name="ddim", steps=2, guidance=1.0)
    )  # fmt: skip
    handle.remove()
    assert seen == [[32, 32, 0, 0, 32, 32], [8, 16, 0, 0, 8, 16]]


def test_other_sizes_than_those_of_the_picture_can_be_told(folders):
    used = loaded(folders["sdxl"], "sdxl")
    plain = our_latents(used, Sampler(name="ddim", steps=3, guidance=5.0), REQUESTS[:1])
    used.unet.sizes = (64, 48, 3, 5, 24, 40)
    ours = our_latents(used, Sampler(name="ddim", steps=3, guidance=5.0), REQUESTS[:1])
    pipe = theirs(folders["sdxl"], "sdxl", "ddim", 3)
    sizes = {"original_size": (64, 48), "crops_coords_top_left": (3, 5), "target_size": (24, 40)}
    noise = initial_noise(100, (4, 8, 8))[None]
    expected = pipe("a robot", latents=noise, **sizes, **LATENTS).images
    assert (ours - expected).abs().max() < 1e-4
    assert (ours - plain).abs().max() > 1e-3


def test_the_autoencoder_of_xl_stays_in_float32_in_half_precision_only(pipelines):
    assert cast(pipelines["sdxl"], "float16").vae.dtype == torch.float32
    assert cast(pipelines["sdxl"], "float16").unet.dtype == torch.float16
    assert cast(pipelines["sdxl"], "bfloat16").vae.dtype == torch.bfloat16
    assert cast(pipelines["sd2"], "float16").vae.dtype == torch.float16
    assert cast(pipelines["sdxl"], "float16").unet.reduction == 2


def test_texts_hold_both_encoders_and_the_pooled_embedding(pipelines):
    used = pipelines["sdxl"]
    texts = encode(used, WORDS, batch=3)
    assert texts.shape == (4, 78, 80)
    ids = used.tokenizer_2(list(WORDS), padding="max_length", return_tensors="pt").input_ids
    assert ids[0, -1] == 0 and used.tokenizer(WORDS[0], padding="max_length").input_ids[-1] != 0
    pooled = used.text_encoder_2(ids).text_embeds
    assert (texts[:, -1, :48] - pooled).abs().max() < 1e-5
    assert not texts[:, -1, 48:].any()
    assert torch.equal(states_of(used, texts), texts[:, :77])
    assert torch.equal(shortened(texts, 5, pooled=True), torch.cat([texts[:, :5], texts[:, 77:]], dim=1))
    plain = encode(pipelines["sd1"], WORDS)
    assert states_of(pipelines["sd1"], plain) is plain
    assert torch.equal(shortened(plain, 5, pooled=False), plain[:, :5])


def test_an_edit_of_the_second_encoder_is_seen_by_the_cache(folders):
    used = loaded(folders["sdxl"], "sdxl")
    before = encode_cached(used, ["a robot"])
    with torch.no_grad():
        used.text_encoder_2.text_projection.weight.mul_(2.0)
    after = encode_cached(used, ["a robot"])
    assert torch.equal(before[:, :77], after[:, :77])
    assert not torch.equal(before[:, 77], after[:, 77])


# --- which layout it is ---


def index(folder, **parts):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def test_layouts_are_read_from_the_configs(folders):
    assert {kind: architecture_of(folder) for kind, folder in folders.items()} == {k: k for k in folders}


@pytest.mark.parametrize(
    ("given", "found"), [("sd1", "sd2"), ("sd2", "sdxl"), ("sdxl", "sd1"), ("sd1", "sdxl")]
)
def test_settings_that_say_another_architecture_are_refused(folders, given, found):
    with pytest.raises(
        ValueError, match=rf"model\.architecture: '{given}' does not fit .*set it to '{found}'"
    ):
        loaded(folders[found], given)


def test_the_parts_of_xl_are_asked_for(folders, tmp_path):
    shutil.copytree(folders["sdxl"], tmp_path / "xl")
    shutil.rmtree(tmp_path / "xl/text_encoder_2")
    shutil.rmtree(tmp_path / "xl/tokenizer_2")
    with pytest.raises(MissingModel, match=r"text_encoder_2/, tokenizer_2/ missing"):
        loaded(tmp_path / "xl", "sdxl")


def test_layouts_without_a_place_are_refused(folders, tmp_path):
    shutil.copytree(folders["sdxl"], tmp_path / "refiner")
    index(tmp_path / "refiner", text_encoder=[None, None])
    with pytest.raises(ValueError, match=r"no first text encoder, as the refiner.*base checkpoint"):
        loaded(tmp_path / "refiner", "sdxl")
    config = tmp_path / "refiner/unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "addition_embed_type": "image"}))
    with pytest.raises(ValueError, match=r"additional input of kind 'image'.*'text_time'"):
        load_unet(str(tmp_path / "refiner"))
    shutil.copytree(folders["sdxl"], tmp_path / "shifted")
    config = tmp_path / "shifted/vae/config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4})
    )
    with pytest.raises(ValueError, match="latents_mean"):
        loaded(tmp_path / "shifted", "sdxl")


def test_parts_that_do_not_fit_each_other_are_refused(folders, tmp_path):
    shutil.copytree(folders["sdxl"], tmp_path / "mixed")
    layouts.text_encoder(
        "CLIPTextModelWithProjection", layouts.padded_with_mark(), 40, 2, "gelu"
    ).save_pretrained(tmp_path / "mixed/text_encoder_2")
    with pytest.raises(ValueError, match="pooled embedding of 40 numbers, the UNet takes 48"):
        loaded(tmp_path / "mixed", "sdxl")


def test_the_unet_alone_is_the_one_of_the_whole_checkpoint(folders, pipelines):
    alone = load_unet(str(folders["sdxl"]))
    assert type(alone) is type(pipelines["sdxl"].unet)
    assert torch.equal(alone.conv_in.weight, pipelines["sdxl"].unet.conv_in.weight)
