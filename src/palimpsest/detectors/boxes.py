"""Boxes of parts: from the boxes of a detector to scores and counts per label, and back to one row per box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


def largest(boxes: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """The largest score of a label's boxes per image, 0 without one: float32 [B] per label."""
    import numpy as np

    return {
        label: np.array([found.max(initial=0.0) for found in images], np.float32)
        for label, images in boxes.items()
    }


def counted(boxes: Sequence[Sequence[float] | None], above: float) -> list[int | None]:
    """How many boxes of each image score above a threshold; None where there is no image."""
    return [None if found is None else sum(score > above for score in found) for found in boxes]


def each_box(scores: pl.DataFrame, above: float | None = None) -> pl.DataFrame:
    """Scores with one row per box: score is the box's, count is 1. An image without a box of a label keeps one row, of count 0.

    above: a threshold under which boxes are dropped (default: none is). Raises ValueError for a table without boxes.
    """
    import polars as pl

    if "boxes" not in scores.columns or scores["boxes"].null_count() == len(scores):
        raise ValueError(
            "these scores have no boxes: their detector looks at whole images. Use a detector of parts (nudenet, parts)"
        )
    kept = (
        pl.col("boxes")
        if above is None
        else pl.col("boxes").list.eval(pl.element().filter(pl.element() > above))
    )
    rows = scores.with_columns(boxes=kept, score=kept).explode("score", empty_as_null=True)
    made = pl.col("boxes").is_not_null()
    found = pl.col("score").is_not_null()
    return rows.with_columns(
        score=pl.when(made).then(pl.col("score").fill_null(0.0)).otherwise(None),
        count=pl.when(made).then(found.cast(pl.Int32)).otherwise(None),
    ).drop("boxes")
