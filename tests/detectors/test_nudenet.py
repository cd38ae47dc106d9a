"""The batched NudeNet against the package's own detector, on photographs of a clothed person and of harmless things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from palimpsest import specs
from palimpsest.detectors import boxes, nudenet

PICTURES = ("astronaut", "coffee", "chelsea")


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    """Photographs that scikit-image brings along: a portrait in a space suit, a cup, a cat."""
    data = pytest.importorskip("skimage.data")
    return {name: np.ascontiguousarray(getattr(data, name)()) for name in PICTURES}


@pytest.fixture(scope="module")
def package():
    from nudenet import NudeDetector

    return NudeDetector()


def opened(**settings) -> nudenet.NudeNet:
    return nudenet.load(specs.Detector(kind="nudenet", **settings))


def by_class(detections) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in detections:
        found.setdefault(one["class"], []).append(one["score"])
    return {name: sorted(scores, reverse=True) for name, scores in found.items()}


def ours(judge: nudenet.NudeNet, image: np.ndarray) -> dict[str, list[float]]:
    return {name: found[0].tolist() for name, found in judge.boxes(image[None]).items() if len(found[0])}


def test_a_face_is_found_in_a_photograph_and_scored_as_by_the_package(
    pictures, package, tmp_path: Path
) -> None:
    Image.fromarray(pictures["astronaut"]).save(tmp_path / "astronaut.png")
    theirs = by_class(package.detect(str(tmp_path / "astronaut.png")))
    found = ours(opened(), pictures["astronaut"])
    assert "FACE_FEMALE" in found and found["FACE_FEMALE"][0] > 0.6
    assert found.keys() == theirs.keys()
    for name, scores in found.items():
        assert scores == pytest.approx(theirs[name], abs=1e-5)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_both_channel_orders_are_the_packages(name: str, order: str, pictures, package) -> None:
    image = pictures[name]
    # the package takes an array for what a file reader gives, which is blue first
    given = image[..., ::-1] if order == "bgr" else image
    theirs = by_class(package.detect(np.ascontiguousarray(given)))
    found = ours(opened(channel_order=order), image)
    assert found.keys() == theirs.keys()
    for label, scores in found.items():
        assert scores == pytest.approx(theirs[label], abs=1e-5)


def test_the_channel_order_moves_the_score(pictures) -> None:
    image = pictures["astronaut"]
    blue, red = (ours(opened(channel_order=order), image)["FACE_FEMALE"][0] for order in ("bgr", "rgb"))
    assert abs(blue - red) > 0.03


def test_candidates_and_suppression_are_the_packages_on_any_output() -> None:
    """Made-up network outputs with hundreds of boxes that overlap, which no harmless photograph gives."""
    from nudenet.nudenet import _postprocess

    rng = np.random.default_rng(0)
    output = np.zeros((1, 22, 400), np.float32)
    output[0, :2], output[0, 2:4] = rng.uniform(0, 320, (2, 400)), rng.uniform(8, 120, (2, 400))
    output[0, 4:] = rng.uniform(0, 1, (18, 400)) ** 12
    height, width = 300, 451
    theirs = by_class(_postprocess([output], 0, 151, 1.0, 451 / 300, width, height, 320, 320))
    classes, scores = nudenet.kept(output[0], (height, width), nudenet.Settings())
    found = {
        nudenet.CLASSES[number]: sorted(scores[classes == number].tolist(), reverse=True)
        for number in np.unique(classes)
    }
    assert sum(map(len, found.values())) > 20
    assert found == theirs
    free, _ = nudenet.kept(output[0], (height, width), nudenet.Settings(nms="per_class"))
    assert len(free) > len(classes)


def test_a_batch_gives_what_single_images_give(pictures) -> None:
    images = np.stack(
        [pictures["astronaut"], pictures["astronaut"][:, ::-1], np.zeros((512, 512, 3), np.uint8)]
    )
    judge = opened(batch=2)
    together = judge.score(images, {})
    assert list(together) == list(judge.labels({})) == list(nudenet.CLASSES)
    for i, image in enumerate(images):
        alone = judge.score(image[None], {})
        for label in nudenet.CLASSES:
            assert together[label][i] == pytest.approx(alone[label][0], abs=1e-5)
    assert together["FACE_FEMALE"][1] > 0.5 and together["FACE_FEMALE"][2] == 0.0


def test_counts_hang_on_the_threshold_and_nothing_else(pictures) -> None:
    found = opened().boxes(pictures["astronaut"][None])["FACE_FEMALE"]
    assert boxes.counted(found, 0.4) == [1]
    assert boxes.counted([*found, None], 0.99) == [0, None]


def test_identity_names_version_weights_and_every_choice() -> None:
    found = opened(nms="per_class", counted_above=0.6).identity()
    assert found["sha256"] == "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f"
    assert found["version"] == "3.4.2"
    assert found["path"] == "package:nudenet/320n.onnx"
    assert (found["channel_order"], found["nms"], found["letterbox"]) == ("bgr", "per_class", "bottom_right")
    assert found["counted_above"] == 0.6


@pytest.mark.parametrize("letterbox", ["centre", "none"])
def test_other_letterboxes_still_find_the_face(letterbox: str, pictures) -> None:
    wide = np.pad(pictures["astronaut"], ((0, 0), (0, 100), (0, 0)), constant_values=128)
    assert ours(opened(letterbox=letterbox), wide)["FACE_FEMALE"][0] > 0.4


def test_boxes_lie_where_they_were_whatever_the_padding() -> None:
    """A box at the image's centre keeps its place in pixels under every letterbox."""
    shape = (200, 400)
    for letterbox, middle in {"bottom_right": (160, 80), "centre": (160, 160), "none": (160, 160)}.items():
        high = 20 if letterbox == "none" else 10
        box = np.array([[*middle, 40, high * 2]], np.float32)
        left, top, width, height = nudenet.placed(box, shape, nudenet.Settings(letterbox=letterbox))[0]
        assert (left + width / 2, top + height / 2) == pytest.approx((200, 100))
        assert width == pytest.approx(50) and height == pytest.approx(25)


def test_wrong_weights_and_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"leave detectors.<name>.path out"):
        opened(path=str(tmp_path / "no.onnx"))
    with pytest.raises(ValueError, match="float32"):
        opened(dtype="float16")
    with pytest.raises(ValueError, match=r"asked nothing, got \['theme/x'\]"):
        opened().score(np.zeros((1, 32, 32, 3), np.uint8), {"theme/x": "x"})
