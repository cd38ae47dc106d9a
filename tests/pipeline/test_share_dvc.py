"""For people who know DVC: repro, status, metrics and plots behave as they expect, without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palimpsest import store
from tests.pipeline.clones import Clone, clone, edit, set_threshold

pytestmark = pytest.mark.pipeline_slow


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Two results with a tag each: the shared one, and one with another threshold, both through `dvc repro`."""
    mine = clone(tmp_path_factory.mktemp("dvc") / "mine")
    mine.ok("dvc", "pull")
    mine.ok("dvc", "repro")
    mine.sh("git add -A && git commit -qm First && git tag first")
    before = mine.artifacts()
    set_threshold(mine, 0.001)  # below every score: all images count as unsafe
    mine.ok("dvc", "repro")
    assert len(set(mine.artifacts()) - set(before)) == 3  # table, costs and report
    return mine


def test_status_is_clean_after_repro_and_notices_edits(tagged: Clone) -> None:
    assert "up to date" in tagged.ok("dvc", "status")
    tagged.sh("git add -A && git commit -qm Second && git tag second")
    assert tagged.ok("dvc", "data", "status", "--granular").strip() == "No changes."
    assert "didn't change" in tagged.ok("dvc", "repro")
    edit(tagged.folder / "methods/uce.yaml", lambda file: file.update(title="UCE!"))
    assert "methods" in tagged.ok("dvc", "status")
    tagged.sh("git checkout -q methods")
    assert "up to date" in tagged.ok("dvc", "status")


def test_metrics_tell_two_tags_apart(tagged: Clone) -> None:
    changed = json.loads(tagged.ok("dvc", "metrics", "diff", "first", "second", "--json"))
    numbers = changed["metrics/scratch/nsfw/sd.json"]["base_unsafe.nsfw.uncased"]
    assert numbers["old"] < numbers["new"] == 1 and numbers["diff"] == pytest.approx(1 - numbers["old"])
    proportions = changed["metrics/scratch/nsfw/uce.json"]["ep.diffusers2025.uncased.detailed.nsfw.uncased"]
    assert proportions["new"] == 0 < proportions["old"]
    assert "metrics/scratch/nsfw/uce.json" in tagged.ok("dvc", "metrics", "show")


def test_plots_need_no_network(tagged: Clone) -> None:
    tagged.ok("dvc", "plots", "diff", "first", "second")
    page = (tagged.folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)\s*=""", page) == [] and "import(" not in page
    assert "diffusers2025.uncased.detailed.nsfw.uncased" in page and '"rev": "first"' in page
    data = json.loads(tagged.ok("dvc", "plots", "show", "--json"))["data"]
    assert set(data) == {"plots/scratch/nsfw/uce.csv"}


def test_datasets_and_polars_open_what_was_shared(tagged: Clone, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tagged.path("data/generations/uce/**/nsfw-0.*.parquet")
    frame = store.read_parquet(path)
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path))
    assert loaded["image_id"] == frame["image_id"].to_list()
    picture = np.asarray(loaded[0]["image"].convert("RGB"))
    assert np.array_equal(picture, store.decode_png(frame["image"][0]["bytes"]))
    score = tagged.path("data/scores/uce/**/nsfw-0.vqa.*.parquet")
    rows = datasets.load_dataset("parquet", data_files=str(score), split="train", cache_dir=str(tmp_path))
    files = list(tagged.folder.glob("data/scores/*/*/*/nsfw-0.vqa.*.parquet"))
    lazily = pl.scan_parquet(files).select("image_id", "score")
    assert "PROJECT 2/" in lazily.explain()
    assert len(files) == 2
    assert (
        lazily.collect().height == sum(store.read_parquet(path).height for path in files) > rows.num_rows > 0
    )
