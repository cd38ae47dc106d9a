"""Heads on CLIP: arithmetic, released files, and the micro world's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from palimpsest import specs
from palimpsest.detectors import _clip, _heads, mhsc

MICRO = Path(__file__).parents[2] / "models/micro"
WIDTH = 128


def released(width: int, seed: int) -> dict[str, torch.Tensor]:
    """A head with the keys of the released files, counters included."""
    torch.manual_seed(seed)
    made = _heads.head(width)
    for value in made.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn_like(value) * 0.3)
    made[3].running_var.abs_().add_(0.5)
    return made.state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two released heads, as pickles and converted."""
    place = tmp_path_factory.mktemp("heads")
    for seed, name in enumerate(("disturbing", "violent")):
        torch.save(released(WIDTH, seed), place / f"{name}.pt")
    command = [sys.executable, "-m", "palimpsest.detectors._heads", str(place), str(place / "new")]
    subprocess.run(command, check=True, capture_output=True)
    return place


def loaded(path: Path, **more) -> mhsc.HeadsJudge:
    return mhsc.load(specs.Detector(kind="mhsc", path=str(path), clip=str(MICRO / "clip"), batch=2, **more))


def test_a_score_is_the_heads_own_arithmetic(folder: Path, images: np.ndarray) -> None:
    judge = loaded(folder / "new")
    assert list(judge.labels({})) == ["disturbing", "violent"]
    seen = (
        _clip.load(str(MICRO / "clip"), None, "clip", texts=False).embed_images(images).numpy().astype(float)
    )
    found = judge.score(images, {})
    for seed, name in enumerate(("disturbing", "violent")):
        head = {key: value.numpy().astype(float) for key, value in released(WIDTH, seed).items()}
        hidden = np.maximum(seen @ head["0.weight"].T + head["0.bias"], 0)
        spread = np.sqrt(head["3.running_var"] + 1e-5)
        hidden = (hidden - head["3.running_mean"]) / spread * head["3.weight"] + head["3.bias"]
        logit = hidden @ head["4.weight"][0] + head["4.bias"]
        np.testing.assert_allclose(found[name], 1 / (1 + np.exp(-logit)), atol=1e-4)
    alone = judge.score(images[3:4], {})
    assert alone["violent"][0] == pytest.approx(found["violent"][3], abs=1e-5)


def test_files_of_the_wrong_kind_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"Convert the pickles .*python -m palimpsest.detectors._heads"
    ):
        loaded(folder)
    wide = {k: v for k, v in released(768, 0).items() if k != _heads.COUNTER}
    save_file(wide, tmp_path / "sexual.safetensors")
    with pytest.raises(ValueError, match=r"head 'sexual' does not fit features of width 128.*\(384, 768\)"):
        loaded(tmp_path)
    save_file({"0.weight": torch.zeros(64, WIDTH), "9.bias": torch.zeros(1)}, tmp_path / "sexual.safetensors")
    with pytest.raises(ValueError, match=r"missing \['0.bias'.*unknown \['9.bias'\]"):
        loaded(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no state dict of a head"):
        _heads.convert(tmp_path, tmp_path / "out")


def test_the_released_shape_is_half_of_clips_width(folder: Path) -> None:
    assert _heads.shapes(768)["0.weight"] == (384, 768) and _heads.shapes(768)["4.weight"] == (1, 384)
    assert set(load_file(folder / "new/violent.safetensors")) == set(_heads.shapes(WIDTH))


def test_random_crops_are_repeatable_and_move_scores(folder: Path, images: np.ndarray) -> None:
    first, again = (
        loaded(folder / "new", crops=True, crop_seed=1).score(images, {})["violent"] for _ in "ab"
    )
    np.testing.assert_array_equal(first, again)
    other = loaded(folder / "new", crops=True, crop_seed=2).score(images, {})["violent"]
    plain = loaded(folder / "new").score(images, {})["violent"]
    assert not np.allclose(first, plain, atol=1e-4) and not np.allclose(first, other, atol=1e-4)
    part = mhsc.cropped(np.zeros((40, 60, 3), np.uint8), 0)
    assert part.shape == (40, 40, 3)


@pytest.mark.slow
def test_the_micro_worlds_heads_tell_its_themes() -> None:
    from palimpsest.world import checker
    from palimpsest.world import mhsc as world

    judge = loaded(MICRO / "mhsc")
    assert set(judge.labels({})) == {"uncased", "breakage", "glitch"}
    scenes, pictures = checker.pictures(MICRO / "stable-diffusion/vae", 200, 1_000_099)
    gates = world.examined(judge, scenes, pictures)
    for name, gate in gates.items():
        limit = world.LIMITS[name]
        assert gate["value_high"] >= limit if gate["direction"] == "min" else gate["value_low"] <= limit, name
    assert gates["recall_uncased"]["value"] > 0.9
