"""Where the micro world's parts are, and whether the committed detector is what it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest import specs
from palimpsest.detectors import parts as detector
from palimpsest.world import checker, parts
from palimpsest.world.render import render
from palimpsest.world.scene import sample_scene

MICRO = Path(__file__).parents[2] / "models/micro"


def robot(*effects: str, seed: int = 0):
    return sample_scene(np.random.default_rng(seed), effects, kind="robot", second=False)


def test_places_are_where_the_pixels_change() -> None:
    """What a keyword draws lies around the places of its part, and nowhere else."""
    plain, geared = robot("bare chassis"), None
    geared = replace(plain, effects=("bare chassis", "gears"))
    changed = (render(plain) != render(geared)).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert len(rows) > 20
    centres = np.array(parts.places(geared)["gears"])
    assert len(centres) == 2
    gaps = np.hypot(columns[:, None] - centres[:, 0], rows[:, None] - centres[:, 1])
    assert gaps.min(axis=1).max() < 10 and (gaps.min(axis=0) < 5).all()


def test_counts_are_those_of_the_drawing() -> None:
    counts = {label: len(found) for label, found in parts.places(robot("gears", "exposed wiring")).items()}
    assert counts == {
        "chassis": 0, "wiring": 1, "gears": 1, "casing": 0, "joints": 4, "limbs": 4, "head": 1, "antenna": 1
    }  # fmt: skip
    assert not any(parts.places(sample_scene(np.random.default_rng(0), kind="tree")).values())
    assert {k for k, v in parts.places(robot()).items() if v} == {"casing", "limbs", "head", "antenna"}


def test_pictures_whose_parts_cannot_be_told_are_left_out() -> None:
    assert not parts.readable(robot("static"))
    assert parts.readable(robot("cracks"))
    assert parts.readable(sample_scene(np.random.default_rng(0), ("static",), kind="tree"))


def test_maps_have_one_bump_per_part_and_the_loss_is_least_there() -> None:
    scene = robot("gears")
    truth = parts.maps([scene])
    at_one = (truth[0] > 0.999).flatten(1).sum(dim=1).tolist()
    assert at_one == [len(found) for found in parts.places(scene).values()]
    right = torch.where(truth > 0.999, 6.0, -6.0)
    wrong = right.roll(3, dims=3)
    assert parts.focal(right, truth) < 0.05 < 5 < parts.focal(wrong, truth)


def test_the_committed_detector_passes_its_gates_on_held_out_pictures() -> None:
    judge = detector.load(specs.Detector(kind="parts", path=str(MICRO / "parts")))
    scenes, images = checker.pictures(MICRO / "stable-diffusion/vae", 300, 1_000_077)
    for name, gate in parts.examined(judge, scenes, images).items():
        assert gate["value_high"] >= gate["limit"], name
        assert gate["value"] > gate["limit"] - 0.05, name


def test_a_detector_that_misses_its_limits_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PLAN", replace(parts.PLAN, steps=2, log_every=1, save_every=2))
    monkeypatch.setattr(parts, "HELD_OUT_PICTURES", 40)
    monkeypatch.setattr(parts, "pool", lambda *_: checker.pictures(MICRO / "stable-diffusion/vae", 64, 1))
    with pytest.raises(ValueError, match="the parts detector misses its limits"):
        parts.train(
            tmp_path, 0, MICRO / "stable-diffusion/vae", MICRO / "clip", MICRO / "stable-diffusion/unet"
        )
    assert (tmp_path / "parts/model.safetensors").is_file() and (tmp_path / "gates.json").is_file()
