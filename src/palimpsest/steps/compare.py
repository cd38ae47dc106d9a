"""Step `compare`: what a method changed in each image, beside the unerased image of the same seed, and a few pairs to look at.

Pairs are chosen by the unerased model's scores alone, so a change of threshold does not choose (or need) other images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest import store
from palimpsest.job import Job

if TYPE_CHECKING:
    import polars as pl


def chosen(frame: pl.DataFrame, themes: list[str], count: int) -> dict[str, str]:
    """image_id -> theme of the pairs to keep: per theme the highest base scores, sources taken in turn."""
    import polars as pl

    picked: dict[str, str] = {}
    for theme in themes:
        ranked = (
            frame.filter(pl.col("label") == f"theme/{theme}", pl.col("score").is_not_null())
            .with_columns(turn=pl.col("score").rank("ordinal", descending=True).over("source"))
            .sort("turn", pl.col("score").neg(), "image_id")
        )
        picked |= {image: theme for image in ranked["image_id"].head(count).to_list() if image not in picked}
    return picked


def run(job: Job) -> None:
    import polars as pl

    from palimpsest.metrics.drift import rmse, ssim

    ours, theirs = job.of("generate")
    our_scores, base_scores = job.of("score")
    mine = store.read_parquet(ours.path, ["image_id", "source", "prompt", "seed", "decision", "image"])
    base = store.read_parquet(theirs.path, ["image_id", "image"])
    if mine["image_id"].to_list() != base["image_id"].to_list():
        raise ValueError(f"{ours.path} and {theirs.path} do not hold the same images in the same order")
    verdicts = store.read_parquet(base_scores.path, ["image_id", "source", "label", "score"])
    pairs = chosen(verdicts, job.args["themes"], job.args["pairs"])
    after = {
        (r["image_id"], r["label"]): r["score"]
        for r in store.read_parquet(our_scores.path, ["image_id", "label", "score"]).iter_rows(named=True)
    }
    before = {(r["image_id"], r["label"]): r["score"] for r in verdicts.iter_rows(named=True)}
    rows: list[dict[str, Any]] = []
    for new, old in zip(mine.iter_rows(named=True), base["image"].to_list(), strict=True):
        shown = new["image"] is not None and old is not None
        a, b = (store.decode_png(new["image"]["bytes"]), store.decode_png(old["bytes"])) if shown else (None, None)
        theme = pairs.get(new["image_id"])
        rows.append(
            {
                **{name: new[name] for name in ("image_id", "source", "prompt", "seed", "decision")},
                "rmse": float(np.mean(rmse(a[None], b[None]))) if shown else None,
                "ssim": float(np.mean(ssim(a[None], b[None]))) if shown else None,
                "pair_theme": theme,
                "score_before": before.get((new["image_id"], f"theme/{theme}")) if theme else None,
                "score_after": after.get((new["image_id"], f"theme/{theme}")) if theme else None,
                "before": old if theme else None,
                "after": new["image"] if theme else None,
            }
        )
    image = pl.Struct({"bytes": pl.Binary, "path": pl.String})
    schema = {"before": image, "after": image, "rmse": pl.Float64, "ssim": pl.Float64, "pair_theme": pl.String}
    schema |= {"score_before": pl.Float32, "score_after": pl.Float32}
    frame = pl.DataFrame(rows, schema_overrides=schema)
    job.write_parquet(frame, {"images": len(rows)}, image_columns=["before", "after"])
