"""Pictures with exact masks: what a mask says is what the renderer did, and the committed file is what the command writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from palimpsest import store
from palimpsest.world import masks
from palimpsest.world.vocab import THEMES

FILE = Path(__file__).parents[2] / "data/micro/scenes.parquet"


@pytest.mark.parametrize("theme", THEMES)
def test_a_mask_is_what_the_keyword_changed(theme):
    rows = masks.masked_scenes(theme, 40, seed=5)
    assert [row.keyword for row in rows] == [THEMES[theme][i % len(THEMES[theme])] for i in range(40)]
    for row in rows:
        assert row.image.shape == (64, 64, 3) and row.image.dtype == np.uint8
        assert row.mask.shape == (64, 64) and row.mask.dtype == bool
        assert 0.03 < row.mask.mean() < 0.95, row.keyword
        assert row.keyword.split()[-1] in row.prompt or row.keyword == "leaking oil"
    smaller = masks.masked_scenes(theme, 10, seed=5)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(smaller, rows[:10], strict=True))


def test_masks_are_where_effects_are():
    rows = {row.keyword: row for row in masks.masked_scenes("breakage", 5, seed=1)}
    heap = rows["scrap"].mask
    assert heap[40:].any() and not heap[:38].any()  # shards lie at the foot of the object
    robot = masks.masked_scenes("uncased", 4, seed=1)[3]
    assert not robot.mask[:10].any() and robot.mask[28:48].any()  # trunk and limbs, but neither sky nor head


def test_outside_of_the_mask_nothing_of_the_keyword_is_seen():
    """The pixels outside are those of the scene without the keyword: all colours of sparks are inside."""
    row = next(r for r in masks.masked_scenes("breakage", 5, seed=2) if r.keyword == "sparks")
    spark = np.abs(row.image.astype(int) - np.array([255, 236, 40])).sum(axis=2) < 3
    assert spark.sum() > 20
    assert (spark & ~row.mask).sum() < 0.05 * spark.sum()


def test_the_committed_file_is_what_the_command_writes(tmp_path):
    masks.main(["--out", str(tmp_path / "made.parquet"), "--seed", "0"])
    made, kept = store.read_parquet(tmp_path / "made.parquet"), store.read_parquet(FILE)
    columns = ["keyword", "theme", "prompt"]
    assert made.select(columns).equals(kept.select(columns))
    assert kept["theme"].value_counts()["count"].to_list() == [masks.PER_THEME] * len(THEMES)
    for name in ("image", "mask"):  # pixels, because another version of the library may compress otherwise
        pairs = zip(made[name].to_list(), kept[name].to_list(), strict=True)
        assert all(
            np.array_equal(store.decode_png(a["bytes"]), store.decode_png(b["bytes"])) for a, b in pairs
        )
    assert FILE.stat().st_size < 1_500_000
