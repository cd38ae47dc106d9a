"""Released CLIP-FlanT5 checkpoints, in their own format at toy size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from palimpsest.detectors import released
from palimpsest.detectors.contract import MissingWeights


@pytest.fixture(autouse=True)
def _empty_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever this machine has downloaded before must not decide a test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))


@pytest.fixture
def folder(released_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(released_folder, tmp_path / "copy"))


def states(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for shard in folder.glob("model-*.safetensors") for k, v in load_file(shard).items()}


def test_every_tensor_lands_under_its_name(released_folder: Path) -> None:
    judge, given = released.load(str(released_folder)), states(released_folder)
    language = judge.language.state_dict()
    for name, value in given.items():
        if name.startswith("mm_projector."):
            assert torch.equal(judge.project.state_dict()[name.removeprefix("mm_projector.")], value)
        elif not name.startswith("vision_tower."):
            assert torch.equal(language[name], value), name
    assert torch.equal(language["encoder.embed_tokens.weight"], given["shared.weight"])
    assert torch.equal(language["decoder.embed_tokens.weight"], given["shared.weight"])
    assert not torch.equal(language["lm_head.weight"], language["shared.weight"])
    assert judge.language.config.scale_decoder_outputs is False
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in judge.parameters())


def test_dtype_is_that_of_the_settings(released_folder: Path) -> None:
    judge = released.load(str(released_folder), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in judge.parameters()} == {torch.bfloat16}


def test_a_full_clip_checkpoint_serves_as_vision_tower(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

    vision = CLIPVisionModel.from_pretrained(folder / "vision_tower")
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision.config.to_dict()))
    shutil.rmtree(folder / "vision_tower")
    whole.save_pretrained(folder / "vision_tower")
    loaded = released.load(str(folder)).vision.state_dict()
    expected = whole.vision_model.state_dict()
    assert len(loaded) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(loaded.values(), expected.values(), strict=True))


def test_pickled_shards_are_refused_and_convert_once(folder: Path, tmp_path: Path) -> None:
    expected = released.load(str(folder)).language.state_dict()
    tensors = states(folder) | {"encoder.embed_tokens.weight": states(folder)["shared.weight"]}
    for file in folder.glob("model*"):
        file.unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        torch.save({k: tensors[k] for k in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    with pytest.raises(MissingWeights, match=r"never loaded here. Convert .*palimpsest.detectors.released"):
        released.load(str(folder))
    command = [sys.executable, "-m", "palimpsest.detectors.released", str(folder), str(tmp_path / "new")]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("vision_tower", "tokenizer"):
        shutil.copytree(folder / name, tmp_path / "new" / name)
    found = released.load(str(tmp_path / "new")).language.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_missing_weights_say_what_to_put_where(folder: Path) -> None:
    with pytest.raises(
        MissingWeights, match=r"hf download zhiqiulin/clip-flant5-xxl --revision abc.*detectors.<name>.path"
    ):
        released.load("zhiqiulin/clip-flant5-xxl", "abc")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        MissingWeights, match=r"1 of 2 shards are missing: \['model-00002-of-00002.safetensors'\]"
    ):
        released.load(str(folder))


@pytest.mark.parametrize(
    ("part", "hub_id"), [("vision_tower", released.VISION), ("tokenizer", "google/flan-t5-xl")]
)
def test_missing_companions_are_named(folder: Path, part: str, hub_id: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(MissingWeights, match=f"hf download {hub_id}.*{part}"):
        released.load(str(folder))


def test_wrong_tensors_are_named(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    gone = next(name for name in sorted(tensors) if name.startswith("decoder."))
    save_file({"extra.weight": torch.zeros(1)} | {k: v for k, v in tensors.items() if k != gone}, shard)
    with pytest.raises(ValueError, match=rf"1 tensors missing \['{gone}'\], 1 unknown \['extra.weight'\]"):
        released.load(str(folder))


def test_another_projector_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_projector_type": "linear"}))
    with pytest.raises(ValueError, match=r"mm_projector_type='linear', allowed: 'mlp2x_gelu'"):
        released.load(str(folder))
