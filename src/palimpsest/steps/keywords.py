"""Step `keywords`: the detailed and concise keyword sets of every theme, with the matrices they were derived from."""

from __future__ import annotations

import math
from typing import Any

from palimpsest import store
from palimpsest.job import Job
from palimpsest.steps.suppression import NOTHING

VERDICT = 0.5


def matrix_of(path: Any, keywords: list[str]) -> dict[str, dict[str, float | None]]:
    """Erasure proportion in percent: erased keyword -> prompted keyword; None where the base never draws the prompted one."""
    import polars as pl

    frame = store.read_parquet(path, ["erased", "prompted", "score"])
    counts = frame.group_by("erased", "prompted").agg((pl.col("score") > VERDICT).sum().alias("unsafe"))
    unsafe = {(r["erased"], r["prompted"]): r["unsafe"] for r in counts.iter_rows(named=True)}
    matrix: dict[str, dict[str, float | None]] = {}
    for erased in keywords:
        row: dict[str, float | None] = {}
        for prompted in keywords:
            base = unsafe[NOTHING, prompted]
            row[prompted] = None if base == 0 else round(100 * (base - unsafe[erased, prompted]) / base, 2)
        matrix[erased] = row
    return matrix


def _or_blank(value: float | None) -> float:
    """A keyword that the base never draws needs no cover; the library knows it as NaN."""
    return math.nan if value is None else value


def run(job: Job) -> None:
    from palimpsest.keywords.collected import TABLE7, collected_for, read_collected
    from palimpsest.keywords.concise import Matrix, concise_sets, relations

    collected = collected_for(
        {name: theme["detailed"] for name, theme in job.args["themes"].items()}, read_collected(TABLE7)
    )
    settings = job.args["keywords"]
    themes = {}
    for name, theme in job.args["themes"].items():
        words = theme["detailed"]
        if settings["concise"] == "given":
            themes[name] = {"detailed": words, "concise": theme["concise"] or words[:1], "matrix": None}
            continue
        found = matrix_of(job.one("suppression", theme=name).path, words)
        matrix = Matrix(tuple(words), tuple(tuple(_or_blank(found[e][p]) for p in words) for e in words))
        themes[name] = {
            "detailed": words,
            "concise": concise_sets(matrix, settings["threshold"]),
            "relations": relations(matrix, settings["threshold"]),
            "matrix": found,
        }
    for name, words in collected.items():
        themes[name]["collected"] = words
    job.write_json({"themes": themes, "rule": settings})
