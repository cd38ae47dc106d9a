"""A checkpoint in one file of the original layout is the checkpoint that it was made from; nothing is asked of any network."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from palimpsest.fingerprint import fingerprint
from palimpsest.params import Model, Sampler
from palimpsest.sampling.load import MissingModel, load_pipeline
from palimpsest.sampling.loop import Request, generate
from tests import layouts, original, tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return original.save(tiny.build(), tmp_path_factory.mktemp("single") / "tiny.safetensors")


@pytest.fixture
def own(made, tmp_path):
    shutil.copytree(made.with_suffix(""), tmp_path / "own")
    return shutil.copy(made, tmp_path / "own.safetensors")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **named):
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(path, **named):
    return load_pipeline(Model(path=str(path), resolution=16), **named)


def image(pipeline):
    sampler = Sampler(name="ddim", steps=2, guidance=4.0)
    return next(generate(pipeline, [Request("a", "a robot with gears", 3)], sampler, tiny.RESOLUTION)).image


def test_every_tensor_and_every_image_is_the_same(made):
    loaded, saved = load(made), tiny.build()
    for part in ("unet", "vae", "text_encoder"):
        own, theirs = getattr(loaded, part).state_dict(), getattr(saved, part).state_dict()
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[name], theirs[name]) for name in own), part
    assert (image(loaded) == image(saved)).all()
    assert loaded.scheduler.config.prediction_type == "epsilon"


def test_a_file_of_xl_is_the_checkpoint_it_was_made_from(tmp_path):
    folder = layouts.sdxl(tmp_path / "folder")
    saved = load_pipeline(Model(path=str(folder), resolution=16, architecture="sdxl"))
    file = original.save(saved, tmp_path / "xl.safetensors", configs=folder)
    assert not list(file.with_suffix("").rglob("*.safetensors"))
    loaded = load_pipeline(Model(path=str(file), resolution=16, architecture="sdxl"))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        own, theirs = getattr(loaded, part).state_dict(), getattr(saved, part).state_dict()
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[name], theirs[name]) for name in own), part
    assert type(loaded.unet) is type(saved.unet) and loaded.unet.reduction == saved.unet.reduction
    assert (image(loaded) == image(saved)).all()
    with pytest.raises(ValueError, match="sdxl"):
        load_pipeline(Model(path=str(file), resolution=16))
    shutil.rmtree(file.with_suffix("") / "tokenizer_2")
    with pytest.raises(MissingModel, match="holds weights only.*tokenizer_2"):
        load_pipeline(Model(path=str(file), resolution=16, architecture="sdxl"))


def test_half_precision_becomes_the_dtype_asked_for(own):
    save_file({name: value.half() for name, value in load_file(own).items()}, own)
    assert load(own).unet.dtype == torch.float32
    half = load(own, dtype="bfloat16")
    assert {half.unet.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.bfloat16}


def test_a_tensor_that_is_missing_is_named(own):
    tensors = load_file(own)
    del tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(tensors, own)
    with pytest.raises(ValueError, match=r"own\.safetensors.*unet.*mid_block\.resnets\.0\.conv1\.weight"):
        load(own)


def test_a_file_without_the_layout_is_refused(own):
    save_file({"something": torch.zeros(2)}, own)
    with pytest.raises(
        ValueError, match=r"own\.safetensors is no checkpoint in the original layout.*model\.diffusion_model"
    ):
        load(own)


def test_the_configuration_beside_it_is_needed_and_counts(own, tmp_path):
    before = fingerprint("own.safetensors", root=tmp_path)
    config = tmp_path / "own/scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"}))
    assert fingerprint("own.safetensors", root=tmp_path) != before
    assert load(own).scheduler.config.prediction_type == "v_prediction"
    shutil.rmtree(tmp_path / "own/vae")
    with pytest.raises(MissingModel, match=r"configs and tokenizer of its diffusers folder"):
        load(own)
