"""Loading checkpoints from folders; what is missing is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from palimpsest.params import Model
from palimpsest.sampling.load import MissingModel, cast, load_pipeline, load_unet
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tiny.build(), tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def own(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "own")


def load(path, **kwargs):
    return load_pipeline(Model(path=str(path), resolution=16), **kwargs)


def weights(pipeline):
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    return [tensor for part in parts for tensor in part.parameters()]


def test_folder_gives_back_what_was_saved(folder):
    loaded, saved = load(folder), tiny.build()
    assert all(torch.equal(a, b) for a, b in zip(weights(loaded), weights(saved), strict=True))
    assert not any(tensor.requires_grad for tensor in weights(loaded))
    assert not loaded.unet.training
    assert not loaded.text_encoder.training
    assert type(loaded.scheduler).__name__ == "PNDMScheduler"
    assert loaded.scheduler.config.steps_offset == 1
    assert loaded.tokenizer("a robot").input_ids == saved.tokenizer("a robot").input_ids
    assert loaded.tokenizer.model_max_length == 77


def test_half_precision_on_disk_becomes_the_dtype_asked_for(own):
    for file in own.rglob("*.safetensors"):
        save_file(
            {name: value.half() for name, value in load_file(file).items()}, file, metadata={"format": "pt"}
        )
    loaded = load(own)
    assert {tensor.dtype for tensor in weights(loaded)} == {torch.float32}
    assert {tensor.dtype for tensor in weights(load(own, dtype="bfloat16"))} == {torch.bfloat16}
    difference = max(
        float((a - b).abs().max()) for a, b in zip(weights(loaded), weights(tiny.build()), strict=True)
    )
    assert 0 < difference < 1e-2


def test_weights_named_fp16_are_found(own):
    for file in own.rglob("*.safetensors"):
        file.rename(file.with_name(file.stem + ".fp16.safetensors"))
    assert len(weights(load(own))) == len(weights(tiny.build()))


def test_older_text_encoder_names_are_understood(own):
    file = own / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{k}": v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    loaded, saved = load(own).text_encoder, tiny.build().text_encoder
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), saved.parameters(), strict=True))


def test_cast_leaves_the_given_pipeline_alone():
    pipeline = tiny.build()
    assert cast(pipeline, "float32") is pipeline
    half = cast(pipeline, "bfloat16")
    assert half.unet.dtype == half.vae.dtype == torch.bfloat16
    assert half.text_encoder is pipeline.text_encoder
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float32


def test_missing_parts_are_named(own):
    shutil.rmtree(own / "tokenizer")
    file = own / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(
        MissingModel, match=r"tokenizer/.*unet/diffusion_pytorch_model\.safetensors missing.*refused"
    ):
        load(own)


def test_missing_models_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingModel, match="no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(MissingModel, match=r"hf download nobody/nothing-1 --revision abc123"):
        load_pipeline(Model(path="nobody/nothing-1", revision="abc123", resolution=512))
    with pytest.raises(MissingModel, match="does not exist"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(MissingModel, match="configs and tokenizer"):
        load(tmp_path / "model.safetensors")


def test_an_architecture_that_is_not_the_checkpoints_is_refused(folder):
    with pytest.raises(ValueError, match=r"model\.architecture: 'sdxl' does not fit .*set it to 'sd1'"):
        load_pipeline(Model(path=str(folder), resolution=16, architecture="sdxl"))


def test_unknown_scheduler_is_named(own):
    config = own / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "NoSuchScheduler"}))
    with pytest.raises(ValueError, match="NoSuchScheduler"):
        load(own)


def index(folder, **parts):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def test_a_diffusion_transformer_is_refused_before_anything_is_loaded(own):
    shutil.rmtree(own / "unet")
    (own / "transformer").mkdir()
    index(own, unet=[None, None], transformer=["diffusers", "SD3Transformer2DModel"])
    with pytest.raises(
        ValueError,
        match=r"model\.path: .*own denoises with a transformer \(SD3Transformer2DModel.*Allowed.*v1 and v2",
    ):
        load(own)
    with pytest.raises(ValueError, match="checkpoint: .*transformer"):
        load_unet(str(own), setting="checkpoint")


def test_a_second_text_encoder_without_a_place_in_the_unet_is_refused(own):
    index(own, text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(
        ValueError,
        match=r"second text encoder \(CLIPTextModelWithProjection\) but a UNet that takes no pooled",
    ):
        load(own)


def test_the_unet_alone_is_the_one_of_the_whole_checkpoint(folder):
    alone, whole = load_unet(str(folder)), load(folder).unet
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), whole.parameters(), strict=True))
    assert not alone.training
