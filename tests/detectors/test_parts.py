"""The parts detector: peaks to boxes and counts, and what the committed network sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from palimpsest import specs
from palimpsest.detectors import _parts_network, boxes, parts

MICRO = Path(__file__).parents[2] / "models/micro/parts"


@pytest.fixture(scope="module")
def judge() -> parts.PartsDetector:
    return parts.load(specs.Detector(kind="parts", path=str(MICRO), batch=3))


def robots(*effects: tuple[str, ...]) -> np.ndarray:
    from palimpsest.world.render import render_all
    from palimpsest.world.scene import sample_scene

    rng = np.random.default_rng(1)
    return render_all([sample_scene(rng, e, kind="robot", second=False) for e in effects])


def test_peaks_are_higher_than_their_neighbours() -> None:
    logits = torch.full((1, 2, 6, 6), -9.0)
    logits[0, 0, 1, 1], logits[0, 0, 1, 2], logits[0, 0, 4, 4] = 2.0, 1.0, 0.5
    logits[0, 1, 3, 3] = logits[0, 1, 3, 4] = 1.0  # a plateau is one thing
    first, second = _parts_network.peaks(logits, 0.1)[0]
    assert first.tolist() == pytest.approx(torch.tensor([2.0, 0.5]).sigmoid().tolist())
    assert len(second) == 1


def test_an_uncased_robot_shows_gears_and_joints_and_a_cased_one_its_casing(
    judge: parts.PartsDetector,
) -> None:
    found = judge.boxes(robots(("gears",), (), ("gears", "exposed wiring")))
    counts = {label: boxes.counted(scores, 0.4) for label, scores in found.items()}
    assert counts["gears"] == [2, 0, 1]
    assert counts["wiring"] == [0, 0, 1]
    assert counts["joints"] == [4, 0, 4]
    assert counts["casing"] == [0, 1, 0]
    assert counts["head"] == [1, 1, 1]


def test_the_score_is_the_largest_box_and_hangs_on_its_image_alone(judge: parts.PartsDetector) -> None:
    images = robots(("gears",), (), ("bare chassis",), ("exposed wiring",))
    found, scores = judge.boxes(images), judge.score(images, {})
    assert list(scores) == list(judge.labels({}))
    for label, values in scores.items():
        assert values.dtype == np.float32
        assert values.tolist() == [float(box.max(initial=0)) for box in found[label]]
        assert judge.score(images[2:3], {})[label][0] == pytest.approx(values[2], abs=1e-5)
    assert judge.score(images[:0], {})["gears"].shape == (0,)


def test_large_images_are_looked_at_in_the_networks_size(judge: parts.PartsDetector) -> None:
    images = robots(("gears",))
    large = images.repeat(4, axis=1).repeat(4, axis=2)
    assert judge.score(large, {})["gears"][0] == pytest.approx(judge.score(images, {})["gears"][0], abs=0.1)


def test_identity_tells_targets_from_others(judge: parts.PartsDetector) -> None:
    found = judge.identity()
    assert found["target"] == ["chassis", "wiring", "gears"]
    assert "joints" in found["other"] and found["counted_above"] == 0.4
    with pytest.raises(ValueError, match="asked nothing"):
        judge.score(robots(()), {"theme/x": "x"})


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json is missing; .*world.train parts"):
        parts.load(specs.Detector(kind="parts", path=str(tmp_path)))
    tensors = load_file(MICRO / "model.safetensors")
    (tmp_path / "config.json").write_text((MICRO / "config.json").read_text())
    save_file({**tensors, "head.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors differ, first \['head.bias'\]"):
        parts.load(specs.Detector(kind="parts", path=str(tmp_path)))
    assert (MICRO / "model.safetensors").stat().st_size < 1_000_000


def test_a_table_can_be_counted_again_above_another_threshold() -> None:
    rows = pl.DataFrame(
        {
            "image_id": ["a/0/0", "a/1/0", "a/2/0"],
            "label": ["gears"] * 3,
            "score": [0.9, 0.0, None],
            "count": [2, 0, None],
            "boxes": [[0.9, 0.5, 0.3], [], None],
        },
        schema_overrides={"boxes": pl.List(pl.Float32)},
    )
    each = boxes.each_box(rows)
    assert each["image_id"].to_list() == ["a/0/0"] * 3 + ["a/1/0", "a/2/0"]
    assert each["count"].to_list() == [1, 1, 1, 0, None]
    assert each["score"].to_list() == pytest.approx([0.9, 0.5, 0.3, 0.0, None])
    assert boxes.each_box(rows, above=0.4)["count"].to_list() == [1, 1, 0, None]
    with pytest.raises(ValueError, match="have no boxes"):
        boxes.each_box(rows.drop("boxes"))
