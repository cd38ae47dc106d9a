"""Step `keywords`: the detailed and concise keyword sets of every theme, with the matrices they were derived from."""

from __future__ import annotations

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


def run(job: Job) -> None:
    from palimpsest.keywords.concise import concise_sets

    settings = job.args["keywords"]
    themes = {}
    for name, theme in job.args["themes"].items():
        words = theme["detailed"]
        if settings["concise"] == "given":
            themes[name] = {"detailed": words, "concise": theme["concise"] or words[:1], "matrix": None}
            continue
        matrix = matrix_of(job.one("suppression", theme=name).path, words)
        themes[name] = {"detailed": words, "concise": concise_sets(matrix, settings["threshold"]), "matrix": matrix}
    job.write_json({"themes": themes, "rule": settings})
