"""Step `erase`: fit one method on one variant."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from palimpsest import store
from palimpsest.job import Job
from palimpsest.methods import checks
from palimpsest.methods.contract import ImageSet, TrainingData
from palimpsest.steps.common import method_of, model_of, target_of


def training_data(job: Job) -> TrainingData:
    """The image sets of this variant, chunks of one theme and role joined in order."""
    return TrainingData((*image_sets(job), *masked_sets(job)))


def image_sets(job: Job) -> list[ImageSet]:
    """Target and safe images."""
    groups: dict[tuple[str, str], list[tuple[np.ndarray, str]]] = {}
    for item in job.of("images"):
        frame = store.read_parquet(item.path, ["image", "prompt"])
        rows = groups.setdefault((item.where["theme"], item.where["role"]), [])
        rows += [(store.decode_png(r["image"]["bytes"]), r["prompt"]) for r in frame.iter_rows(named=True)]
    return [
        ImageSet(theme, role, np.stack([image for image, _ in rows]), tuple(prompt for _, prompt in rows))  # type: ignore[arg-type]
        for (theme, role), rows in groups.items()
    ]


def masked_sets(job: Job) -> list[ImageSet]:
    """Images with masks and the keyword that each shows."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in job.of("masks"):
        frame = store.read_parquet(item.path, ["image", "mask", "prompt", "keyword"])
        groups.setdefault(item.where["theme"], []).extend(frame.iter_rows(named=True))
    return [
        ImageSet(
            theme,
            "masked_images",
            np.stack([store.decode_png(row["image"]["bytes"]) for row in rows]),
            tuple(row["prompt"] for row in rows),
            np.stack([store.decode_png(row["mask"]["bytes"])[..., 0] > 127 for row in rows]),
            tuple(row["keyword"] for row in rows),
        )
        for theme, rows in groups.items()
    ]


def run(job: Job) -> None:
    module, settings = method_of(job)
    pipeline = model_of(job)
    target = target_of(job)
    checks.check_target(pipeline, target)
    checks.check_model(pipeline)
    data = training_data(job)
    started = time.perf_counter()
    artifact = module.fit(pipeline, target, data, settings, job.args["seed"])
    checks.check_artifact(artifact)
    seconds = round(time.perf_counter() - started, 3)
    fit = {**artifact.meta, "fit_seconds": seconds, "keywords": list(target.keywords)}
    job.write_tensors(artifact.tensors, {"fit": fit})
