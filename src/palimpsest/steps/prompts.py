"""Step `prompts`: one prompt suite in the common schema, gated, with every warning counted."""

from __future__ import annotations

from pathlib import Path

from palimpsest.job import Job
from palimpsest.prompts.ingest import ingest
from palimpsest.sampling.noise import image_seed
from palimpsest.specs import Suite


def run(job: Job) -> None:
    suite = Suite.model_validate(job.args["suite"])
    frame, meta = ingest(job.where["suite"], suite, job.args["seed"], Path("."), image_seed=image_seed)
    job.write_parquet(frame, meta)
