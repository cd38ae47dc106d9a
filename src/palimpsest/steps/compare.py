"""Step `compare`: what a method changed in each image, beside the unerased image of the same seed; a few pairs, and small copies.

Pairs are chosen by the unerased model's scores and a hash of the image id: neither the best nor the worst, the same for every method,
and a change of a rule's threshold does not ask for other images.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from palimpsest import store
from palimpsest.job import Job

if TYPE_CHECKING:
    import polars as pl

DRAWN = 0.5
PROVIDED = "provided"
IMAGES = ("before", "after", "sheet_before", "sheet_after")


def chosen(scores: pl.DataFrame, themes: list[str], count: int) -> dict[str, str]:
    """image_id -> theme: `count` images per theme in the order of a hash, those in which the base draws the theme first."""
    import polars as pl

    picked: dict[str, str] = {}
    for theme in themes:
        rows = (
            scores.filter(pl.col("label") == f"theme/{theme}", pl.col("score").is_not_null())
            .select("image_id", "score")
            .rows()
        )
        rows.sort(key=lambda row: (row[1] <= DRAWN, hashlib.sha256(row[0].encode()).hexdigest()))
        for image_id, _ in [row for row in rows if row[0] not in picked][:count]:
            picked[image_id] = theme
    return picked


def run(job: Job) -> None:
    import polars as pl

    from palimpsest import sheets
    from palimpsest.metrics.drift import comparable, rmse, ssim
    from palimpsest.steps.reference import IMAGE, reduced

    ours, theirs = job.one("generate"), job.one("reference")
    mine = store.read_parquet(
        ours.path, ["image_id", "source", "prompt", "seed", "decision", "reason", "image"]
    )
    base = store.read_parquet(theirs.path, ["image_id", "image"])
    if mine["image_id"].to_list() != base["image_id"].to_list():
        raise ValueError(f"{ours.path} and {theirs.path} do not hold the same images in the same order")
    scores = store.read_parquet(job.one("score").path, ["image_id", "label", "score"])
    pairs = chosen(scores, job.args["themes"], job.args["pairs"])
    rows: list[dict[str, Any]] = []
    places = {
        row: at for at, row in enumerate(sheets.chosen(base["image_id"].to_list(), job.args["thumbnails"]))
    }
    copies: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    for at, (new, old) in enumerate(zip(mine.iter_rows(named=True), base["image"].to_list(), strict=True)):
        row = {name: new[name] for name in ("image_id", "source", "prompt", "seed", "decision", "reason")}
        a, b = (
            None if image is None else comparable(store.decode_png(image["bytes"])[None])
            for image in (old, new["image"])
        )
        # an image made elsewhere has no noise in common with the base, so their distance says nothing
        if a is not None and b is not None and new["decision"] != PROVIDED:
            row |= {"rmse": float(rmse(b, a)[0]), "ssim": float(ssim(b, a)[0])}
        if at in places:
            row["place"] = places[at]
            for side, image in zip(copies, (a, b), strict=True):
                if image is not None:
                    side[places[at]] = sheets.small(image[0])
        theme = pairs.get(new["image_id"])
        rows.append(
            {
                **row,
                "pair_theme": theme,
                "before": old if theme else None,
                "after": reduced(new["image"]) if theme else None,
            }
        )
    for name, side in zip(("sheet_before", "sheet_after"), copies, strict=True):
        found = sheets.sheet(side, len(places))
        if found:  # one for all rows, in the first
            rows[0][name] = {"bytes": found, "path": f"{name}.jpg"}
    kinds: dict[str, Any] = {
        "reason": pl.String,
        "rmse": pl.Float64,
        "ssim": pl.Float64,
        "place": pl.Int64,
        "pair_theme": pl.String,
        **dict.fromkeys(IMAGES, IMAGE),
    }
    names = ("image_id", "source", "prompt", "seed", "decision", *kinds)
    frame = pl.DataFrame([{name: row.get(name) for name in names} for row in rows], schema_overrides=kinds)
    job.write_parquet(frame, {"images": len(rows)}, image_columns=IMAGES)
