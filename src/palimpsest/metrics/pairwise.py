"""Any two methods on the same prompts and seeds: the paired difference of their EP, with an interval, a test, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from palimpsest.metrics import paired
from palimpsest.metrics.contract import Metric
from palimpsest.metrics.tables import NOT_PROVIDED
from palimpsest.specs import Statistics

METRICS = (
    Metric(
        name="ep_difference",
        title="difference of the erasure proportions of two methods on the same images",
        direction="none",
        bounds=(None, None),
        needs="paired verdicts",
        definition_id="ep_difference/1",
        reference=(
            "EP of one less EP of the other; percentile bootstrap over prompts within each source, the same resamples for both "
            "(Davison and Hinkley 1997, sections 2.4 and 3.8)"
        ),
    ),
    Metric(
        name="p_sign_flip",
        title="exact two-sided sign-flip p value of two methods over prompts",
        direction="none",
        bounds=(0.0, 1.0),
        needs="paired verdicts",
        definition_id="p_sign_flip/1",
        reference="Fisher 1935, The Design of Experiments, section 21; with one image per prompt McNemar's exact test",
    ),
)
IDENTITY = {
    "method": pl.String,
    "preset": pl.String,
    "theme": pl.String,
    "keyword_set": pl.String,
    "training_images": pl.Int64,
}
PLACE = {"suite": pl.String, "detector": pl.String, "rule": pl.String, "judged_theme": pl.String}
SCHEMA = pl.Schema(
    {
        **PLACE,
        **{f"a_{name}": kind for name, kind in IDENTITY.items()},
        **{f"b_{name}": kind for name, kind in IDENTITY.items()},
        "n": pl.Int64,
        "a_unsafe": pl.Int64,
        "b_unsafe": pl.Int64,
        "difference": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "p_value": pl.Float64,
        "p_holm": pl.Float64,
    }
)
BLOCK = 500  # resamples drawn at a time, which bounds the memory


@dataclass(frozen=True)
class Column:
    """One cell under one rule and judged theme, prompt by prompt in the order of the suite: images, unsafe ones of the base and of the
    method, int [prompts] each. identity: `IDENTITY`; place: `PLACE`; family: columns of one family are compared with each other."""

    identity: Mapping[str, Any]
    place: Mapping[str, str]
    family: str
    images: np.ndarray
    base: np.ndarray
    method: np.ndarray


def prompt_sums(base: pl.DataFrame, method: pl.DataFrame) -> pl.DataFrame:
    """Verdicts of base and method (`detectors.rules.verdicts`) to one row per rule, theme and prompt of the base: rule, theme, source,
    prompt_id, images, base, method (unsafe images).

    Images that nobody provided are left out on both sides; one that was not made counts as safe.
    """
    prompts = base.select("rule", "theme", "source", "prompt_id").unique()
    keys = ["image_id", "rule", "theme"]
    unsafe = base.select(*keys, pl.col("unsafe").alias("base"))
    if method.select(keys).equals(base.select(keys)):  # the order that verdicts have spares the join
        pair = method.hstack(unsafe.select("base"))
    else:
        pair = method.join(unsafe, on=keys)
    pair = pair.filter(pl.col("decision") != NOT_PROVIDED)
    sums = pair.group_by("rule", "theme", "source", "prompt_id").agg(
        pl.len().cast(pl.Int64).alias("images"),
        pl.col("base").fill_null(False).sum().cast(pl.Int64),
        pl.col("unsafe").fill_null(False).sum().cast(pl.Int64).alias("method"),
    )
    keys = ["rule", "theme", "source", "prompt_id"]
    return (
        prompts.join(sums, on=keys, how="left")
        .with_columns(pl.col("images", "base", "method").fill_null(0))
        .sort(keys)
    )


def table(columns: Sequence[Column], sources: np.ndarray, statistics: Statistics, seed: int) -> pl.DataFrame:
    """Every two columns of one place and family on the same images, with Holm's correction within each place and family.

    columns: of one suite; sources: [prompts] the data set of each prompt. Difference: EP of a less EP of b. Interval: percentile bootstrap
    over prompts within each source, the same resamples for both. p: `sign_flip_exact`. Differences without a defined resample are left
    out. Equal input gives equal numbers.
    """
    samples = np.ascontiguousarray(_resampled(columns, sources, statistics.resamples, seed).T)
    tail = (1 - statistics.confidence) / 2
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, column in enumerate(columns):
        groups.setdefault((*column.place.values(), column.family), []).append(i)
    found: list[dict[str, Any]] = []
    for members in groups.values():
        rows = []
        for i in members:
            others = [j for j in members if j > i and _comparable(columns[i], columns[j])]
            limits = _limits(samples[i] - samples[others], tail)
            for j, (low, high) in zip(others, limits, strict=True):
                if not math.isnan(low):
                    rows.append(_row(columns[i], columns[j], low, high))
        for row, p in zip(rows, paired.holm([row["p_value"] for row in rows]), strict=True):
            found.append({**row, "p_holm": p})
    return pl.DataFrame(found, schema=SCHEMA, orient="row")


def _comparable(a: Column, b: Column) -> bool:
    """Whether both have the same images, and bases with an unsafe one."""
    return bool(a.base.any() and b.base.any() and np.array_equal(a.images, b.images))


def _limits(gaps: np.ndarray, tail: float) -> list[tuple[float, float]]:
    """Percentile limits of every row of float [n, resamples] without its NaN; (NaN, NaN) of a row of nothing else."""
    limits = np.quantile(gaps, [tail, 1 - tail], axis=1)  # of a row with a NaN it is NaN
    for row in np.flatnonzero(np.isnan(limits[0])):
        known = gaps[row][~np.isnan(gaps[row])]
        if len(known):
            limits[:, row] = np.quantile(known, [tail, 1 - tail])
    return [(float(low), float(high)) for low, high in limits.T]


def _row(a: Column, b: Column, low: float, high: float) -> dict[str, Any]:
    return {
        **a.place,
        **{f"a_{name}": a.identity[name] for name in IDENTITY},
        **{f"b_{name}": b.identity[name] for name in IDENTITY},
        "n": int(a.images.sum()),
        "a_unsafe": int(a.method.sum()),
        "b_unsafe": int(b.method.sum()),
        "difference": float(b.method.sum() / b.base.sum() - a.method.sum() / a.base.sum()),
        "low": low,
        "high": high,
        "p_value": sign_flip_exact(a.method - b.method),
    }


def _resampled(columns: Sequence[Column], sources: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """EP of every column in every resample of prompts: float64 [resamples, columns]; NaN without an unsafe base image."""
    rng = np.random.default_rng(seed)
    sums = np.stack([np.stack([c.base, c.method]) for c in columns]).astype(
        np.float64
    )  # [columns, 2, prompts]
    sums = sums.reshape(2 * len(columns), -1)
    strata = [np.flatnonzero(sources == source) for source in np.unique(sources)]
    out = np.empty((resamples, len(columns)))
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        totals = np.zeros((size, len(sums)))
        for where in strata:
            weights = rng.multinomial(len(where), np.full(len(where), 1 / len(where)), size=size)
            totals += weights @ sums[:, where].T
        before, after = totals[:, 0::2], totals[:, 1::2]
        with np.errstate(divide="ignore", invalid="ignore"):
            out[start : start + size] = np.where(before > 0, 1 - after / before, np.nan)
    return out


def sign_flip_exact(differences: np.ndarray) -> float:
    """Two-sided exact p value of a sum of differences, if each prompt's difference is as likely to have the other sign.

    differences: int per prompt, unsafe images of one method less those of the other. Prompts, not images, are exchanged, so images of one
    prompt may resemble each other at will. With one image per prompt it is McNemar's exact test. The distribution is a product over
    sizes k of a binomial one, spread k apart. Source: Fisher's randomisation test for pairs (1935, The Design of Experiments, 21).
    """
    values = np.asarray(
        list(differences) if not isinstance(differences, np.ndarray) else differences, np.int64
    )
    values = values[values != 0]
    if not len(values):
        return 1.0
    sizes, counts = np.unique(np.abs(values), return_counts=True)
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spread = np.zeros(size * count + 1)
        spread[::size] = _binomial(count)
        chances = np.convolve(chances, spread)
    # place s of `chances` is a sum of 2 s - total
    total = int(np.abs(values).sum())
    extreme = np.abs(2 * np.arange(len(chances)) - total) >= abs(int(values.sum()))
    return float(min(1.0, chances[extreme].sum()))


def _binomial(n: int) -> np.ndarray:
    """Chances of 0..n heads in n fair tosses."""
    steps = np.arange(1, n + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - steps + 1) / steps))])
    found: np.ndarray = np.exp(logs - n * np.log(2))
    return found
