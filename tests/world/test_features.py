"""The committed picture network of the micro world knows renders, orders damages and keeps sets apart; and its training runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from palimpsest import store
from palimpsest.metrics import _micro_network, frechet, kernel, measuring, micro
from palimpsest.world import features, real
from palimpsest.world.render import render_all
from palimpsest.world.scene import sample_scene

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "models" / "micro" / "features"


@pytest.fixture(scope="module")
def measure() -> micro.Micro:
    return micro.load(micro.Settings(path=str(FOLDER)))


def renders(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return render_all([sample_scene(rng) for _ in range(count)])


def test_the_weights_are_small() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size < 1_000_000


@pytest.mark.parametrize("kind", features.DAMAGES)
def test_the_more_damaged_picture_is_farther_away(measure: micro.Micro, kind: str) -> None:
    images = renders(40, 7)
    base = list(images)
    distances = []
    for level in (0.0, 0.15, 0.45, 0.9):
        damaged = [features.damaged(image, kind, level, seed) for seed, image in enumerate(images)]
        pictures = measuring.Pictures(damaged, [""] * 40, base=base)
        distances.append(measure.measure(pictures)["lpips_micro"])
    assert distances[0].max() == pytest.approx(0, abs=1e-5)
    for less, more in pairwise(distances):
        assert (more > less).mean() >= 0.9


def test_sets_of_damaged_pictures_are_farther_from_renders(measure: micro.Micro) -> None:
    """FID and KID rise with the damage, and are far smaller between two sets of renders."""

    def of(images: list[np.ndarray]) -> np.ndarray:
        return measure.features(measuring.Pictures(images, [""] * len(images)))["micro"].astype(np.float64)

    one, other = renders(400, 1), renders(400, 2)  # with fewer, FID of equal distributions is far above 0
    worse = [
        [features.damaged(image, "noise", level, seed) for seed, image in enumerate(other)]
        for level in (0.0, 0.3, 0.8)
    ]
    for distance in (frechet.fid, kernel.kid):
        values = [distance(of(list(one)), of(images)) for images in worse]
        assert values[0] < values[1] < values[2]
        assert values[0] < 0.4 * values[2]  # not 0: FID of few pictures is biased


def test_pictures_do_not_depend_on_their_batch(measure: micro.Micro) -> None:
    images = list(renders(5, 3))
    together = measure.features(measuring.Pictures(images, [""] * 5))["micro"]
    single = [measure.features(measuring.Pictures([image], [""]))["micro"][0] for image in images]
    assert together == pytest.approx(np.stack(single), abs=1e-4)


def test_only_bytes_are_taken(measure: micro.Micro) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 images \[n, h, w, 3\], got float64"):
        _micro_network.pixels_of(np.zeros((1, 64, 64, 3)))


def test_training_writes_weights_that_load_and_refuses_a_network_that_misses_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(features, "POOL", 64)
    monkeypatch.setattr(features, "HELD_OUT_PICTURES", 200)
    monkeypatch.setattr(features, "PLAN", replace(features.PLAN, steps=2, save_every=2))
    with pytest.raises(ValueError, match="misses its limits"):
        features.train(tmp_path, seed=0, batch=8)
    assert _micro_network.load(tmp_path / "features").embed.out_features == 32
    with pytest.raises(FileNotFoundError, match="git checkout"):
        _micro_network.load(tmp_path / "nothing")


def test_the_committed_real_pictures_are_those_that_the_captions_give(tmp_path: Path) -> None:
    path = tmp_path / "real.parquet"
    assert real.write(ROOT / "data/micro/prompts/coco.csv", path) == 48
    made, kept = (store.read_parquet(p) for p in (path, ROOT / "data/micro/real.parquet"))
    assert made["prompt_id"].to_list() == kept["prompt_id"].to_list()
    for ours, theirs in zip(made["image"], kept["image"], strict=True):
        assert (store.decode_png(ours["bytes"]) == store.decode_png(theirs["bytes"])).all()
    scene = real.scene_of("a photo of a red lamp on the beach", np.random.default_rng(0))
    assert (scene.main.colour, scene.main.kind, scene.background, scene.second) == (
        "red",
        "lamp",
        "beach",
        None,
    )
    with pytest.raises(ValueError, match="names no colour and object"):
        real.scene_of("a cat", np.random.default_rng(0))
