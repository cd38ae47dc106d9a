"""The score step runs any detector, and its table says what was found where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palimpsest import specs, store
from palimpsest.detectors import contract
from palimpsest.steps import score

MICRO = Path(__file__).parents[1] / "models/micro"
THEMES = {"uncased": ["uncased", "gears"], "glitch": ["glitch", "static"]}
DETECTORS = {
    "vqa": {"path": str(MICRO / "vqa")},
    "clip": {"path": str(MICRO / "clip")},
    "parts": {"path": str(MICRO / "parts")},
    "mhsc": {"path": str(MICRO / "mhsc"), "clip": str(MICRO / "clip")},
    "safety_checker": {"path": str(MICRO / "safety-checker")},
    "nudenet": {},
}


@pytest.fixture(scope="module")
def generations() -> pl.DataFrame:
    """An uncased robot, a prompt that was refused, and a tree."""
    from palimpsest.world.render import render
    from palimpsest.world.scene import sample_scene

    rng = np.random.default_rng(0)
    made = [sample_scene(rng, ("gears",), second=False), None, sample_scene(rng, kind="tree", second=False)]
    images = [None if s is None else {"bytes": store.encode_png(render(s)), "path": "x.png"} for s in made]
    return pl.DataFrame(
        {
            "image_id": ["a/0/00", "a/1/00", "a/2/00"],
            "source": "a",
            "prompt_id": [0, 1, 2],
            "repetition": 0,
            "decision": ["generated", "blocked", "generated"],
            "image": images,
        }
    )


@pytest.mark.parametrize("kind", DETECTORS)
def test_every_detector_scores_every_label_once_per_image(kind: str, generations: pl.DataFrame) -> None:
    module = contract.find(kind)
    judge = module.load(specs.Detector(kind=kind, **DETECTORS[kind]), "cpu")
    asked = module.questions(THEMES, {}, ["glitch"])
    assert bool(asked) == ("labels" not in module.INFO.rules)
    frame = score.judge_frame(judge, asked, generations, batch=2)
    labels = list(judge.labels(asked))
    assert frame.columns == [*score.KEPT, "label", "score", "count", "boxes"]
    assert frame["label"].unique(maintain_order=True).to_list() == labels and len(frame) == 3 * len(labels)
    blocked = frame["decision"] == "blocked"
    assert frame.filter(blocked)["score"].null_count() == len(labels)
    assert frame.filter(~blocked)["score"].null_count() == 0
    low, high = module.INFO.bounds
    assert frame["score"].min() >= low and frame["score"].max() <= high
    identity = judge.identity()
    assert identity["detector"] == kind and identity["definition_id"].startswith(f"{kind}/")
    counts = isinstance(judge, contract.PartsJudge)
    assert counts == (kind in ("parts", "nudenet"))
    nulls = frame["count"].null_count()
    assert nulls == (len(labels) if counts else len(frame)) == frame["boxes"].null_count()


def test_boxes_are_counted_and_kept(generations: pl.DataFrame) -> None:
    judge = contract.find("parts").load(specs.Detector(kind="parts", **DETECTORS["parts"]), "cpu")
    frame = score.judge_frame(judge, {}, generations, batch=8)
    rows = {(row["image_id"], row["label"]): row for row in frame.iter_rows(named=True)}
    geared = rows["a/0/00", "gears"]
    assert geared["count"] == 2 and geared["score"] == geared["boxes"][0] >= geared["boxes"][1] > 0.4
    assert rows["a/0/00", "joints"]["count"] == 4
    assert rows["a/2/00", "gears"]["count"] == 0
    assert rows["a/1/00", "gears"]["boxes"] is None


def test_a_folder_of_no_images_has_its_labels() -> None:
    judge = contract.find("nudenet").load(specs.Detector(kind="nudenet"), "cpu")
    empty = pl.DataFrame(
        {
            "image_id": ["a"],
            "source": "a",
            "prompt_id": 0,
            "repetition": 0,
            "decision": "blocked",
            "image": None,
        },
        schema_overrides={"image": pl.Struct({"bytes": pl.Binary, "path": pl.String})},
    )
    frame = score.judge_frame(judge, {}, empty, batch=4)
    assert len(frame) == 18 and frame["score"].null_count() == 18
