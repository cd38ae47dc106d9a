"""Rows of the table of quality: every measure of every cell, with its interval and its change against the base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.metrics import frechet, grd, intervals, kernel

IDENTITY = ("method", "preset", "theme", "keyword_set", "training_images", "suite")
SCHEMA = pl.Schema(
    {
        "experiment": pl.String,
        "method": pl.String,
        "preset": pl.String,
        "theme": pl.String,
        "keyword_set": pl.String,
        "training_images": pl.Int64,
        "suite": pl.String,
        "measure": pl.String,
        "metric": pl.String,
        "definition_id": pl.String,
        "n": pl.Int64,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "change": pl.Float64,
        "change_low": pl.Float64,
        "change_high": pl.Float64,
        "status": pl.String,
        "reason": pl.String,
    }
)
SORT = ("suite", "metric", "theme", "method", "preset", "keyword_set", "training_images")
PROMPT = pl.col("image_id").str.replace(r"/[^/]*$", "")
Row = dict[str, Any]


def value_rows(
    frame: pl.DataFrame, base: pl.DataFrame | None, names: Sequence[str], confidence: float
) -> list[Row]:
    """One row per metric that is a mean over pictures: mean with its interval over prompts, and the mean paired change against the base.

    frame, base: image_id and one column per metric, null where nothing was measured. A metric that was measured nowhere has no row (a base
    picture has no distance to itself).
    """
    rows = []
    for name in names:
        known = frame.select("image_id", name).drop_nulls()
        if known.is_empty():
            continue
        low, high = _mean_interval(known, name, confidence)
        row: Row = {
            "metric": name,
            "n": len(known),
            "value": float(known[name].to_numpy().mean()),
            "low": low,
            "high": high,
            "status": "ok",
        }
        if len(known) < len(frame):
            row["reason"] = (
                f"{len(frame) - len(known)} of {len(frame)} images were not made, or lack what they are compared with"
            )
        if base is not None and name in base.columns:
            both = known.join(base.select("image_id", theirs=name).drop_nulls(), on="image_id")
            if len(both):
                both = both.with_columns(gap=pl.col(name) - pl.col("theirs"))
                limits = _mean_interval(both, "gap", confidence)
                row |= {
                    "change": float(both["gap"].to_numpy().mean()),
                    "change_low": limits[0],
                    "change_high": limits[1],
                }
        rows.append(row)
    return rows


def _mean_interval(frame: pl.DataFrame, name: str, confidence: float) -> intervals.Interval:
    prompts = frame.select(PROMPT).to_series().to_numpy()
    return intervals.mean_interval(frame[name].to_numpy(), prompts, confidence)


def set_rows(
    frame: pl.DataFrame,
    others: Mapping[str, pl.DataFrame],
    column: str,
    endings: tuple[str, str],
    confidence: float,
) -> list[Row]:
    """FID and KID of a set of pictures. frame: image_id, source, prompt_id, features; others: "" (real pictures) and "base_" -> theirs.

    Both sides hold the pictures of the same prompts. FID depends on how many there are, so it is not given when some were not made; KID
    does not, and is.
    """
    rows: list[Row] = []
    made = frame.drop_nulls(column)
    for prefix, other in others.items():
        keys = ["image_id"] if "image_id" in other.columns else ["source", "prompt_id"]
        both = made.join(
            other.select(*keys, theirs=column).drop_nulls(), on=keys, how="inner", maintain_order="left"
        )
        names = [f"fid_{prefix}{endings[0]}", *([f"kid_{prefix}{endings[1]}"] if endings[1] else [])]
        whole = len(both) == len(frame)
        if len(both) < 3:
            reason = f"only {len(both)} of {len(frame)} images can be compared"
            rows += [
                {"metric": name, "n": len(both), "status": "undefined", "reason": reason} for name in names
            ]
            continue
        ours, theirs = (_matrix(both[name]) for name in (column, "theirs"))
        prompts = both.select(PROMPT).to_series().to_numpy()
        for name in names:
            row: Row = {"metric": name, "n": len(both), "status": "ok"}
            if name.startswith("kid_"):
                value, limits = kernel.kid_interval(ours, theirs, prompts, confidence, paired=True)
                row |= {"value": value, "low": limits[0], "high": limits[1]}
            elif whole:
                limits = frechet.fid_interval(ours, theirs, prompts, confidence)
                row |= {"value": frechet.fid(ours, theirs), "low": limits[0], "high": limits[1]}
            else:
                row["status"] = "undefined"
            if not whole:
                row["reason"] = (
                    f"{len(frame) - len(both)} of {len(frame)} images were not made; FID depends on their number, so "
                    "it would not compare"
                )
            rows.append(row)
    return rows


def _matrix(column: pl.Series) -> np.ndarray:
    return column.list.to_array(len(column[0])).to_numpy().astype(np.float64)


def grd_row(base: pl.DataFrame, method: pl.DataFrame, parts: Mapping[str, Any], confidence: float) -> Row:
    """GRD of one cell, from the scores of a detector of parts."""
    found = grd.grd(
        base,
        method,
        parts["target"],
        parts["other"],
        threshold=parts["threshold"],
        unit=parts["unit"],
        resamples=parts["resamples"],
        confidence=confidence,
        seed=parts["seed"],
    )
    row: Row = {"metric": "grd", "n": base["image_id"].n_unique(), "status": "ok"}
    if math.isnan(found.value):
        reason = f"the base shows {found.n_base_target} target parts and {found.n_base_other} others"
        return row | {"status": "undefined", "reason": reason}
    row |= {"value": found.value, "low": found.low, "high": found.high}
    row["reason"] = (
        f"{parts['unit']}: target {found.n_base_target} before, {found.n_target} after; "
        f"others {found.n_base_other} before, {found.n_other} after"
    )
    return row


def missing(frame: pl.DataFrame, base: pl.DataFrame, name: str) -> Row | None:
    """A row that says why a cell cannot be compared: it does not cover the base's images. None when it does."""
    ids = [part["image_id"].unique().sort() for part in (frame, base)]
    if ids[0].equals(ids[1]):
        return None
    ours, theirs = (set(part) for part in ids)
    reason = f"covers {len(ours & theirs)} of the base's {len(theirs)} images"
    return {"metric": name, "n": len(ours), "status": "missing", "reason": reason}


def finish(rows: Sequence[Mapping[str, Any]], definitions: Mapping[str, str]) -> pl.DataFrame:
    """The whole table in a fixed order; NaN becomes null. Raises KeyError for a metric that no module declares."""
    full = [{**row, "definition_id": definitions[row["metric"]]} for row in rows]
    frame = pl.DataFrame(full, schema=SCHEMA, orient="row")
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None)).sort(
        SORT, nulls_last=True, maintain_order=True
    )
