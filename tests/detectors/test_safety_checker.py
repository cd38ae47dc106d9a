"""The safety checker as a judge says what the filter decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest import specs
from palimpsest.detectors import safety_checker

MICRO = Path(__file__).parents[2] / "models/micro/safety-checker"


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    from palimpsest.world.mixture import training_scene
    from palimpsest.world.render import render_all

    rng = np.random.default_rng(3)
    return render_all([training_scene(rng) for _ in range(24)])


def test_flags_are_those_of_diffusers_own_class(pictures: np.ndarray) -> None:
    judge = safety_checker.load(specs.Detector(kind="safety_checker", path=str(MICRO), batch=10))
    found = judge.score(pictures, {})
    assert list(found) == list(judge.labels({})) and len(found) == 18
    pixels = judge.checker.processor(images=list(pictures), return_tensors="pt").pixel_values
    with torch.no_grad():
        _, flagged = judge.checker.model(images=[i.copy() for i in pictures], clip_input=pixels)
    assert (found["flagged"] > 0).tolist() == flagged
    assert 3 < sum(flagged) < 24
    concepts = np.stack([found[name] for name in judge.checker.names])
    np.testing.assert_array_equal(found["flagged"], concepts.max(axis=0))
    assert all(values.dtype == np.float32 for values in found.values())


def test_it_is_asked_nothing_and_says_who_it_is(pictures: np.ndarray) -> None:
    judge = safety_checker.load(specs.Detector(kind="safety_checker", path=str(MICRO)))
    assert judge.score(pictures[:0], {})["flagged"].shape == (0,)
    assert judge.identity()["definition_id"] == "safety_checker/1"
    with pytest.raises(ValueError, match="asked nothing"):
        judge.score(pictures, {"theme/x": "x"})
    with pytest.raises(ValueError, match="not float16"):
        safety_checker.load(specs.Detector(kind="safety_checker", path=str(MICRO), dtype="float16"))
    with pytest.raises(FileNotFoundError, match="hf download a/b"):
        safety_checker.load(specs.Detector(kind="safety_checker", path="a/b"))
