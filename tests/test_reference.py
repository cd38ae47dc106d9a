"""The base's images as they are shared with the scores: what a method's images are compared with, in place of the generations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from palimpsest import closure, store
from palimpsest.metrics import drift

IDS = ["nsfw/0/0", "nsfw/1/0", "nsfw/2/0"]


def generations(path: Path, images: list[np.ndarray | None]) -> Path:
    """What `generate` leaves; None is a blocked prompt."""
    cells = [
        None if image is None else {"bytes": store.encode_png(image), "path": f"{image_id}.png"}
        for image_id, image in zip(IDS, images, strict=True)
    ]
    columns: dict[str, Any] = {
        "image_id": IDS,
        "source": ["own"] * 3,
        "prompt": ["a robot"] * 3,
        "seed": [1, 2, 3],
        "decision": ["made" if image is not None else "blocked_prompt" for image in images],
        "reason": pl.Series([None] * 3, dtype=pl.String),
        "image": pl.Series(cells, dtype=pl.Struct({"bytes": pl.Binary, "path": pl.String})),
    }
    store.write_parquet(pl.DataFrame(columns), path, image_columns=["image"])
    return path


def make(folder: Path, step: str, inputs: dict[str, Path], **args: Any) -> Path:
    """Run a step as a job, in a process of its own."""
    output = folder / f"{step}.0123456789abcdef.parquet"
    spec = {
        "step": step,
        "where": {},
        "key": "0123456789abcdef",
        "args": args,
        "inputs": [{"step": name, "where": {}, "path": str(path)} for name, path in inputs.items()],
        "output": str(output),
        **closure.stamp((f"palimpsest.steps.{step}", "palimpsest.job")),
        "recipe": {},
    }
    code = "import json, sys; from palimpsest.job import run; run(json.load(sys.stdin))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(spec),
        text=True,
        capture_output=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return output


def pictures(size: int, seed: int) -> list[np.ndarray | None]:
    made = np.random.default_rng(seed).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    return [made[0], None if seed else made[1][::-1], made[1]]


@pytest.mark.parametrize("size", [64, 512])
def test_a_comparison_by_way_of_the_stored_images_is_that_of_the_generations(
    tmp_path: Path, size: int
) -> None:
    mine, theirs = pictures(size, 1), pictures(size, 0)
    ours, base = generations(tmp_path / "ours.parquet", mine), generations(tmp_path / "base.parquet", theirs)
    reference = make(tmp_path, "reference", {"generate": base})
    stored = store.read_parquet(reference)
    assert stored["image_id"].to_list() == IDS
    for image, before in zip(stored["image"].to_list(), theirs, strict=True):
        small = store.decode_png(image["bytes"])
        assert np.array_equal(small, drift.comparable(before[None])[0]) and max(small.shape) == min(size, 256)
        assert (image["bytes"] == store.encode_png(before)) == (size == 64)
    scores = pl.DataFrame({"image_id": IDS, "label": ["theme/uncased"] * 3, "score": [0.9, 0.8, 0.1]})
    store.write_parquet(scores, tmp_path / "scores.parquet")
    inputs = {"generate": ours, "reference": reference, "score": tmp_path / "scores.parquet"}
    compared = store.read_parquet(
        make(tmp_path, "compare", inputs, themes=["uncased"], pairs=3, thumbnails=2)
    )
    for row, after, before in zip(compared.iter_rows(named=True), mine, theirs, strict=True):
        if after is None:
            assert row["rmse"] is None and row["ssim"] is None and row["after"] is None
            continue
        assert row["rmse"] == drift.rmse(after[None], before[None])[0] > 0
        assert row["ssim"] == drift.ssim(after[None], before[None])[0]
        shown = [store.decode_png(row[side]["bytes"]) for side in ("before", "after")]
        assert np.array_equal(shown[0], drift.comparable(before[None])[0])
        assert np.array_equal(shown[1], drift.comparable(after[None])[0])


def test_images_in_another_order_are_refused(tmp_path: Path) -> None:
    base = generations(tmp_path / "base.parquet", pictures(64, 0))
    reference = make(tmp_path, "reference", {"generate": base})
    other = store.read_parquet(base)[::-1]
    store.write_parquet(other, tmp_path / "ours.parquet", image_columns=["image"])
    scores = pl.DataFrame({"image_id": IDS, "label": ["theme/uncased"] * 3, "score": [0.9, 0.8, 0.1]})
    store.write_parquet(scores, tmp_path / "scores.parquet")
    inputs = {
        "generate": tmp_path / "ours.parquet",
        "reference": reference,
        "score": tmp_path / "scores.parquet",
    }
    with pytest.raises(AssertionError, match="do not hold the same images in the same order"):
        make(tmp_path, "compare", inputs, themes=["uncased"], pairs=3, thumbnails=2)
