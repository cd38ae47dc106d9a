"""Parts: rates counted by hand, and the map of methods by parts on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_inputs
import numpy as np
import polars as pl
import pytest

from palimpsest.metrics import grd, intervals, part_rates
from palimpsest.reports import drawing, drawings, parts, select
from palimpsest.reports.inputs import ReportInputs

TARGET, OTHER = ["gears", "wiring"], ["limbs"]
GRD = {"uncased": {"detector": "parts", "target": TARGET, "other": OTHER, "threshold": 0.4}}


def detections(seed: int, chance: float) -> pl.DataFrame:
    """Scores of three parts in 60 images of two sources."""
    rng, rows = np.random.default_rng(seed), []
    for at in range(60):
        for label in (*TARGET, *OTHER):
            score = float(rng.random() < chance) if label != "limbs" else 0.9
            rows.append((f"{'ab'[at % 2]}/{at // 4}/{at % 4}", "ab"[at % 2], label, score))
    return pl.DataFrame(rows, schema=["image_id", "source", "label", "score"], orient="row")


def test_rates_are_those_counted_by_hand_and_agree_with_grd() -> None:
    base, method = detections(0, 0.6), detections(1, 0.2)
    options: dict[str, Any] = {"threshold": 0.4, "resamples": 500, "confidence": 0.95, "seed": 3}
    found = {row["part"]: row for row in part_rates.part_rates(base, method, TARGET, OTHER, **options)}
    whole = grd.grd(base, method, TARGET, OTHER, **options)
    for part, row in found.items():
        flags = [
            frame.filter(pl.col("label") == part).sort("image_id")["score"].to_numpy() > 0.4
            for frame in (base, method)
        ]
        assert (row["n_base"], row["n_left"], row["n"]) == (flags[0].sum(), flags[1].sum(), 60)
        assert row["ep"] == pytest.approx(1 - flags[1].sum() / flags[0].sum()) == whole.per_class[part]
        ids = base.filter(pl.col("label") == part).sort("image_id")
        prompts = ids["image_id"].str.replace(r"/[^/]*$", "").to_numpy()
        limits = intervals.ep_interval(
            *flags, prompts, ids["source"].to_numpy(), resamples=500, confidence=0.95, seed=3
        )
        assert (row["ep_low"], row["ep_high"]) == limits
    assert [row["group"] for row in found.values()] == ["target", "target", "other"]
    assert found["limbs"]["ep"] == 0.0 < found["gears"]["ep_low"]
    none = detections(0, 0.0)
    rows = part_rates.part_rates(none, method, TARGET, OTHER, **options)
    assert "ep" not in rows[0] and rows[0]["n_base"] == 0


@pytest.fixture(scope="module")
def with_parts(inputs: ReportInputs) -> ReportInputs:
    """A made-up EP of every part for each variant of two methods."""
    rows = []
    names = ("method", "preset", "theme", "keyword_set", "training_images", "suite")
    cells = inputs.cells.filter(
        pl.col("suite") == "nsfw", pl.col("method").is_in(["uce", "esd"]), pl.col("theme") == "uncased"
    )
    for place, who in enumerate(cells.select(names).unique(maintain_order=True).iter_rows(named=True)):
        for at, part in enumerate((*TARGET, *OTHER)):
            ep = 0.9 - 0.3 * at - 0.02 * place
            rows.append({**who, "detector": "parts", "parts_of": "uncased", "part": part, "group": "other" if part in OTHER else "target",
                         "n": 60, "n_base": 30, "n_left": 3, "ep": ep, "ep_low": ep - 0.1, "ep_high": ep + 0.1})  # fmt: skip
    return replace(
        inputs,
        parts=pl.DataFrame(rows, schema=part_rates.SCHEMA),
        comparisons=(),
        params=fake_inputs.settings(),
    )


def test_one_variant_per_method_stands_on_the_map(with_parts: ReportInputs, tmp_path: Path) -> None:
    found = parts.part_rows(select.rows_of(with_parts), with_parts)
    assert len(found) == with_parts.parts.height  # type: ignore[union-attr]
    kept = parts.shown(found, with_parts, "uncased")
    assert {row["variant"] for row in kept} == {"detailed keywords"}
    assert len(kept) == 3 * len({row["label"] for row in kept}) == 12
    rows = select.rows_of(with_parts)
    table = parts.part_table(rows, with_parts)
    assert table.rows == found and "ep" in {column.key for column in table.columns}
    [task] = [task for task in drawings.tasks(rows, with_parts) if task.name.startswith("parts_")]
    with drawing.begun([task], tmp_path) as work:
        svg = work.finished([task])["parts_uncased"]
    assert svg.index(">gears<") < svg.index(">wiring<") < svg.index(">limbs<") and ">90<" in svg
    assert parts.part_rows(select.rows_of(with_parts), replace(with_parts, parts=None)) == []
