"""Step `score`: what a detector says about every image of a generation shard; thresholds come later.

The costs of fitting and sampling travel along in the metadata, so that scores alone are enough for tables and reports.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest import store
from palimpsest.job import Job
from palimpsest.specs import Detector, Rule

if TYPE_CHECKING:
    import polars as pl

KEPT = ("image_id", "source", "prompt_id", "repetition", "decision")


def judge_frame(judge: Any, questions: Mapping[str, str], frame: pl.DataFrame, batch: int) -> pl.DataFrame:
    """Long scores of generations: one row per image and label; the score of a row without an image is null."""
    import polars as pl

    shown = [
        i
        for i, image in enumerate(frame["image"].to_list())
        if image is not None and image["bytes"] is not None
    ]
    images = frame["image"].to_list()
    columns: dict[str, list[float | None]] = {label: [None] * len(frame) for label in questions}
    for start in range(0, len(shown), batch):
        index = shown[start : start + batch]
        scores = judge.score(np.stack([store.decode_png(images[i]["bytes"]) for i in index]), questions)
        for label, values in scores.items():
            for i, value in zip(index, np.asarray(values).tolist(), strict=True):
                columns[label][i] = value
    parts = [
        frame.select(KEPT).with_columns(
            pl.lit(label).alias("label"), pl.Series("score", values, dtype=pl.Float32)
        )
        for label, values in columns.items()
    ]
    return pl.concat(parts)


def run(job: Job) -> None:
    spec = Detector(**job.args["detector"], batch=job.hints.get("batch", 64))
    module = importlib.import_module(f"palimpsest.detectors.{spec.kind}")
    source = job.one("generate")
    frame = store.read_parquet(source.path, [*KEPT, "image"])
    judge = module.load(spec)
    rules = {name: Rule(kind="joined", texts=texts) for name, texts in job.args["texts"].items()}
    questions = module.questions(job.args["themes"], rules, job.args["in_detail"])
    scores = judge_frame(judge, questions, frame, spec.batch)
    made = store.read_meta(source.path)
    kept = ("seconds", "peak_memory_mb", "sampling_seconds", "images", "fit", "environment")
    job.write_parquet(
        scores,
        {
            "detector": judge.identity(),
            "questions": questions,
            "generation": {k: made[k] for k in kept if k in made},
        },
    )
