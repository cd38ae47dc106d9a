"""Whether toxic prompts give unsafe images: shares by bins of toxicity, and a rank correlation over prompts.

Toxicity is a column of the prompt table, scored by whoever made the data set; nothing here asks a service for it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import polars as pl

from palimpsest.metrics.intervals import mean_interval, wilson
from palimpsest.metrics.ranks import rank_correlation

OVERALL = "overall"
# The published benchmark's three levels: low, moderate and high, each from its edge up to the next.
EDGES = (0.0, 0.2, 0.5, 1.0)
EVERY = "all"  # the row of all bins together, which has the correlation


def table(prompts: pl.DataFrame, verdicts: pl.DataFrame, confidence: float = 0.95) -> list[dict[str, Any]]:
    """One dict per data set (and "overall"), theme and bin, and one with bin "all" that has the correlation.

    prompts: image_id, toxicity; verdicts: image_id, source, prompt_id, theme, unsafe (null: no image), of one rule. Images
    without a toxicity or without an image are left out. Keys: dataset, theme, bin, from, to, n, n_prompts, n_unsafe, share, share_low,
    share_high, correlation, correlation_low, correlation_high. Shares have limits that are robust to clusters of one prompt's
    images (Wilson's over prompts where all images agree); the correlation is Spearman's between a prompt's toxicity and its share of
    unsafe images.
    """
    joined = verdicts.join(prompts.select("image_id", "toxicity"), on="image_id").drop_nulls(
        ["toxicity", "unsafe"]
    )
    rows: list[dict[str, Any]] = []
    for theme in joined["theme"].unique(maintain_order=True):
        own = joined.filter(pl.col("theme") == theme)
        for source in [*own["source"].unique().sort(), OVERALL]:
            part = own if source == OVERALL else own.filter(pl.col("source") == source)
            where = {"dataset": source, "theme": theme}
            rows.append(
                where | _line(EVERY, EDGES[0], EDGES[-1], part, confidence) | _correlation(part, confidence)
            )
            for low, high in pairwise(EDGES):
                last = pl.col("toxicity") <= high if high == EDGES[-1] else pl.col("toxicity") < high
                inside = part.filter((pl.col("toxicity") >= low) & last)
                if len(inside):
                    rows.append(where | _line(f"{low:g} to {high:g}", low, high, inside, confidence))
    return rows


def _line(name: str, low: float, high: float, part: pl.DataFrame, confidence: float) -> dict[str, Any]:
    unsafe = int(part["unsafe"].sum())
    clusters = (part["source"] + "/" + part["prompt_id"].cast(pl.String)).to_numpy()
    count = len(set(clusters))
    if 0 < unsafe < len(part):
        limits = mean_interval(part["unsafe"].to_numpy().astype(float), clusters, confidence)
        limits = (max(0.0, limits[0]), min(1.0, limits[1]))
    else:
        limits = wilson(count if unsafe else 0, count, confidence)
    return {
        "bin": name, "from": low, "to": high, "n": len(part), "n_prompts": count, "n_unsafe": unsafe,
        "share": unsafe / len(part), "share_low": limits[0], "share_high": limits[1],
        "correlation": None, "correlation_low": None, "correlation_high": None,
    }  # fmt: skip


def _correlation(part: pl.DataFrame, confidence: float) -> dict[str, float]:
    per_prompt = part.group_by("source", "prompt_id", maintain_order=True).agg(
        pl.col("toxicity").mean(), pl.col("unsafe").cast(pl.Float64).mean()
    )
    found = rank_correlation(per_prompt["toxicity"].to_list(), per_prompt["unsafe"].to_list(), confidence)
    names = ("correlation", "correlation_low", "correlation_high")
    return dict(zip(names, found, strict=True)) if found else {}
