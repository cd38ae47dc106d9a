"""What became of each part: the erasure proportion of every class of a detector of parts, with its interval.

GRD is the difference of two groups of these; here every class speaks for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.metrics.coverage import check_coverage
from palimpsest.metrics.ep import erasure_proportion
from palimpsest.metrics.grd import counts, images_of
from palimpsest.metrics.intervals import cluster_sums, ep_interval_of_sums

SCHEMA = pl.Schema(
    {
        "method": pl.String,
        "preset": pl.String,
        "theme": pl.String,
        "keyword_set": pl.String,
        "training_images": pl.Int64,
        "suite": pl.String,
        "detector": pl.String,
        "parts_of": pl.String,
        "part": pl.String,
        "group": pl.String,
        "n": pl.Int64,
        "n_base": pl.Int64,
        "n_left": pl.Int64,
        "ep": pl.Float64,
        "ep_low": pl.Float64,
        "ep_high": pl.Float64,
    }
)


def part_rates(
    base: pl.DataFrame,
    method: pl.DataFrame,
    target: Sequence[str],
    other: Sequence[str],
    *,
    threshold: float,
    resamples: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """One row per class: part, group ("target" or "other"), n images, n_base and n_left images with it, EP with limits.

    base, method: as for `metrics.grd.grd`. An image counts once per class, with a box whose score is above `threshold`. No EP where the
    base shows a class in no image; limits are None where they are not known. Raises ValueError for unequal images.
    """
    check_coverage(base["image_id"].unique(), method["image_id"].unique())
    labels = [*target, *other]
    before, after = (counts(frame, labels, threshold, "classes") > 0 for frame in (base, method))
    images = images_of(base)
    prompts = images["image_id"].str.replace(r"/[^/]*$", "").rank("dense").to_numpy()
    sources = images["source"].to_numpy()
    places = [np.flatnonzero(sources == source) for source in np.unique(sources)]
    members = [np.unique(prompts[here], return_inverse=True)[1] for here in places]
    rows = []
    for at, part in enumerate(labels):
        n_base, n_left = int(before[:, at].sum()), int(after[:, at].sum())
        row: dict[str, Any] = {
            "part": part,
            "group": "target" if at < len(target) else "other",
            "n": len(images),
            "n_base": n_base,
            "n_left": n_left,
        }
        if n_base:
            sums = [
                cluster_sums(before[here, at], after[here, at], member)
                for here, member in zip(places, members, strict=True)
            ]
            low, high = ep_interval_of_sums(sums, resamples=resamples, confidence=confidence, seed=seed)
            known = not np.isnan(low)
            row |= {
                "ep": erasure_proportion(n_base, n_left),
                "ep_low": low if known else None,
                "ep_high": high if known else None,
            }
        rows.append(row)
    return rows
