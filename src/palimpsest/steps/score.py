"""Step `score`: what a detector says about every image of a generation shard; thresholds come later.

The costs of fitting and sampling travel along in the metadata, so that scores alone are enough for tables and reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest import store
from palimpsest.detectors import contract
from palimpsest.detectors.boxes import counted, largest
from palimpsest.detectors.contract import PartsJudge
from palimpsest.job import Job
from palimpsest.specs import Detector, Rule

if TYPE_CHECKING:
    import polars as pl

# Of a row group. Scores are read whole, column by column, unlike pictures: groups of a hundred rows take several times as long to read.
ROWS = 100_000
KEPT = ("image_id", "source", "prompt_id", "repetition", "decision")


def judge_frame(judge: Any, questions: Mapping[str, str], frame: pl.DataFrame, batch: int) -> pl.DataFrame:
    """Long scores of generations: one row per image and label; the score of a row without an image is null.

    Only a detector of parts fills `count` and `boxes`: how many boxes it counts, and the scores of all of them, largest first, so that
    they can be counted above another threshold.
    """
    import polars as pl

    images = frame["image"].to_list()
    shown = [i for i, image in enumerate(images) if image is not None and image["bytes"] is not None]
    labels = judge.labels(questions)
    scores: dict[str, list[float | None]] = {label: [None] * len(frame) for label in labels}
    boxes: dict[str, list[list[float] | None]] = {label: [None] * len(frame) for label in labels}
    for start in range(0, len(shown), batch):
        index = shown[start : start + batch]
        stack = np.stack([store.decode_png(images[i]["bytes"]) for i in index])
        found = judge.boxes(stack) if isinstance(judge, PartsJudge) else {}
        for label, values in (largest(found) if found else judge.score(stack, questions)).items():
            for row, i in enumerate(index):
                scores[label][i] = float(values[row])
                boxes[label][i] = found[label][row].tolist() if found else None
    above = getattr(judge, "counted_above", 0.0)
    parts = [
        frame.select(KEPT).with_columns(
            pl.lit(label).alias("label"),
            pl.Series("score", scores[label], dtype=pl.Float32),
            pl.Series("count", counted(boxes[label], above), dtype=pl.Int32),
            pl.Series("boxes", boxes[label], dtype=pl.List(pl.Float32)),
        )
        for label in labels
    ]
    return pl.concat(parts)


def run(job: Job) -> None:
    spec = Detector(**job.args["detector"], batch=job.hints.get("batch", 64))
    module = contract.find(spec.kind)
    source = job.one("generate")
    frame = store.read_parquet(source.path, [*KEPT, "image"])
    judge = module.load(spec, contract.device())
    rules = {name: Rule(kind="joined", texts=texts) for name, texts in job.args["texts"].items()}
    questions = module.questions(job.args["themes"], rules, job.args["in_detail"])
    scores = judge_frame(judge, questions, frame, spec.batch)
    made = store.read_meta(source.path)
    kept = ("seconds", "peak_memory_mb", "sampling_seconds", "images", "fit", "halvings", "environment")
    extra = {
        "detector": judge.identity(),
        "questions": questions,
        "labels": list(judge.labels(questions)),
        "generation": {k: made[k] for k in kept if k in made},
    }
    job.check()
    store.write_parquet(scores, job.output, job.meta(extra), row_group_size=ROWS)
