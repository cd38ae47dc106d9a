"""GRD against a plain recount, its three units, and its interval."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from palimpsest.metrics import grd as module
from palimpsest.metrics.grd import grd

TARGET, OTHER = ["gears", "wiring"], ["joints", "limbs"]
OPTIONS = {"threshold": 0.4, "resamples": 200}


def table(rows: list[tuple[str, str, float | None]]) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema={"image_id": pl.String, "label": pl.String, "score": pl.Float32}, orient="row"
    )


def random_tables(prompts: int = 40, seeds: int = 3) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Several boxes per class; the method removes most target parts and few others."""
    rng = np.random.default_rng(4)
    tables: list[list[tuple[str, str, float | None]]] = [[], []]
    for prompt in range(prompts):
        often = rng.beta(2, 2)
        for seed in range(seeds):
            image = f"i2p/{prompt}/{seed}"
            for label in (*TARGET, *OTHER):
                boxes = int(rng.binomial(3, often))
                kept = rng.random(boxes) < (0.3 if label in TARGET else 0.8)
                for rows, shown in ((tables[0], np.ones(boxes, bool)), (tables[1], kept)):
                    rows.append((image, label, 0.0))
                    rows += [(image, label, float(rng.uniform(0.41, 1))) for _ in range(int(shown.sum()))]
    return table(tables[0]), table(tables[1])


def recounted(frame: pl.DataFrame, labels: list[str], unit: str) -> int:
    """What counts, one row after the other."""
    boxes: dict[str, dict[str, int]] = {}
    for image, label, score in frame.iter_rows():
        if score > 0.4 and label in labels:
            boxes.setdefault(image, {}).setdefault(label, 0)
            boxes[image][label] += 1
    if unit == "boxes":
        return sum(sum(found.values()) for found in boxes.values())
    return sum(1 if unit == "images" else len(found) for found in boxes.values())


@pytest.mark.parametrize("unit", module.UNITS)
def test_every_unit_is_a_plain_recount(unit: module.Unit) -> None:
    base, method = random_tables()
    found = grd(base, method, TARGET, OTHER, unit=unit, **OPTIONS)
    before = [recounted(base, labels, unit) for labels in (TARGET, OTHER)]
    after = [recounted(method, labels, unit) for labels in (TARGET, OTHER)]
    assert [found.n_base_target, found.n_base_other] == before
    assert [found.n_target, found.n_other] == after
    target, other = (1 - b / a for a, b in zip(before, after, strict=True))
    assert found.value == pytest.approx(target - other)
    assert found.low < found.value < found.high
    assert found.low > 0  # the method spares the others, and 40 prompts show it


def test_the_units_differ_where_the_paper_leaves_them_open() -> None:
    shown = [("gears", 0.9), ("gears", 0.8), ("wiring", 0.9), ("joints", 0.9), ("limbs", 0.9)]
    base = table([("a/0/0", *row) for row in shown])
    method = table([("a/0/0", "gears", 0.9), ("a/0/0", "wiring", 0.1), ("a/0/0", "joints", 0.9), ("a/0/0", "limbs", 0.5)])  # fmt: skip
    values = {unit: grd(base, method, TARGET, OTHER, unit=unit, **OPTIONS).value for unit in module.UNITS}
    assert values == pytest.approx({"classes": 0.5, "images": 0.0, "boxes": 2 / 3})


def test_a_row_may_stand_for_several_boxes() -> None:
    counted = table([("a/0/0", "gears", 0.9), ("a/0/0", "wiring", 0.0), ("a/0/0", "joints", 0.9), ("a/0/0", "limbs", 0.0)])  # fmt: skip
    base = counted.with_columns(count=pl.Series([4, 0, 1, 0]))
    method = counted.with_columns(count=pl.Series([1, 0, 1, 0]))
    assert grd(base, method, TARGET, OTHER, unit="boxes", **OPTIONS).target == pytest.approx(0.75)
    assert grd(base, method, TARGET, OTHER, unit="classes", **OPTIONS).target == 0.0


def test_a_detectors_lists_of_boxes_are_counted_above_the_threshold() -> None:
    labels = {"image_id": ["a/0/0"] * 4, "label": ["gears", "wiring", "joints", "limbs"]}
    boxes = [[0.9, 0.5, 0.41, 0.3], [], [0.8], []]
    base = pl.DataFrame({**labels, "score": [0.9, 0.0, 0.8, 0.0], "boxes": boxes})
    method = pl.DataFrame({**labels, "score": [0.5, 0.0, 0.8, 0.0], "boxes": [[0.5], [], [0.8], []]})
    found = grd(base, method, TARGET, OTHER, unit="boxes", **OPTIONS)
    assert (found.n_base_target, found.n_target, found.n_base_other) == (3, 1, 1)


def test_an_image_that_was_not_made_shows_nothing() -> None:
    base, method = random_tables(prompts=6)
    blocked = method.with_columns(score=pl.lit(None, pl.Float32)).unique(["image_id", "label"])
    found = grd(base, blocked, TARGET, OTHER, **OPTIONS)
    assert (found.target, found.other, found.value) == (1.0, 1.0, 0.0)


def test_a_threshold_on_the_score_itself_is_not_passed() -> None:
    base = table([("a/0/0", label, 0.5) for label in (*TARGET, *OTHER)])
    assert grd(base, base, TARGET, OTHER, threshold=0.4).n_base_target == 2
    assert grd(base, base, TARGET, OTHER, threshold=0.5).n_base_target == 0


def test_nothing_to_count_is_no_number() -> None:
    base = table([("a/0/0", label, 0.1) for label in (*TARGET, *OTHER)])
    found = grd(base, base, TARGET, OTHER, **OPTIONS)
    assert math.isnan(found.value) and math.isnan(found.low)


def test_order_and_seed() -> None:
    base, method = random_tables(prompts=15)
    first = grd(base, method, TARGET, OTHER, **OPTIONS)
    mixed = grd(base.sample(fraction=1, shuffle=True, seed=1), method.reverse(), TARGET, OTHER, **OPTIONS)
    assert mixed == first
    assert grd(base, method, TARGET, OTHER, **{**OPTIONS, "resamples": 199}).low != first.low


def test_the_interval_covers_the_truth_where_images_of_a_prompt_are_alike() -> None:
    """All images of a prompt show the same: 60 prompts with 8 seeds each are 60 observations."""
    rng, truth, runs, prompts, seeds = np.random.default_rng(11), 0.3, 200, 60, 8
    kind = {
        "image_id": [f"a/{p}/{s}" for p in range(prompts) for s in range(seeds) for _ in range(2)],
        "label": ["gears", "joints"] * (prompts * seeds),
    }
    apart = [name.replace("/", "_") + "/0" for name in kind["image_id"]]
    covered = naive = 0
    for run in range(runs):
        base = rng.random((prompts, 1, 2)) < 0.6
        method = base & (rng.random((prompts, 1, 2)) < [0.4, 0.7])
        shown = [np.repeat(flags, seeds, axis=1).ravel().astype(np.float32) for flags in (base, method)]
        frames = [pl.DataFrame({**kind, "score": score}) for score in shown]
        options = {"threshold": 0.5, "resamples": 300, "seed": run}
        found = grd(*frames, ["gears"], ["joints"], **options)
        covered += found.low <= truth <= found.high
        single = grd(
            *(f.with_columns(image_id=pl.Series(apart)) for f in frames), ["gears"], ["joints"], **options
        )
        naive += single.low <= truth <= single.high
    assert 0.92 <= covered / runs <= 0.98
    assert naive / runs < 0.7


@pytest.mark.parametrize(
    ("target", "other", "unit", "message"),
    [
        (["gears"], ["gears"], "classes", r"\['gears'\] are in both groups"),
        (["gears"], ["feet"], "classes", r"\['feet'\] were never scored; .*gears"),
        (["gears"], [], "classes", r"both groups need a class"),
        (
            ["gears"],
            ["joints"],
            "pixels",
            r"unit 'pixels' does not exist; allowed: \['classes', 'images', 'boxes'\]",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused(
    target: list[str], other: list[str], unit: str, message: str
) -> None:
    base, _ = random_tables(prompts=2)
    with pytest.raises(ValueError, match=message):
        grd(base, base, target, other, unit=unit, **OPTIONS)  # type: ignore[arg-type]


def test_both_sides_need_the_same_images() -> None:
    base, method = random_tables(prompts=3)
    with pytest.raises(ValueError, match="do not cover the same images"):
        grd(base, method.filter(pl.col("image_id") != "i2p/0/0"), TARGET, OTHER, **OPTIONS)
