"""Step `generate`: the images of one method, variant and suite shard. Prompts that the gate excluded are not in it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from palimpsest import store
from palimpsest.job import Job
from palimpsest.steps.common import artifact_of, method_of, model_of, noted, sampler_of, target_of
from palimpsest.steps.generations import COLUMNS, write_generations


def run(job: Job) -> None:
    from palimpsest.sampling import fast
    from palimpsest.sampling.loop import Request, generate
    from palimpsest.sampling.memory import Halving

    sampler = sampler_of(job)
    module, settings = method_of(job)
    artifact, fit_meta = artifact_of(job)
    index, size = job.args["shard"]
    frame = store.read_parquet(job.one("prompts").path).filter(gate="ok")
    rows = frame.slice(index * size, size).select(COLUMNS).to_dicts()
    asked = [Request(r["image_id"], r["prompt"], r["seed"]) for r in rows]
    resolution = job.args["model"]["resolution"]
    halvings: list[Halving] = []
    engine: dict[str, Any] = {}
    if hasattr(module, "produce"):
        made = module.produce(asked, settings, resolution, job.where["suite"])
    else:
        pipeline = module.apply(model_of(job), artifact, target_of(job), settings)
        engine = {"engine": asdict(fast.form(pipeline, sampler))}
        made = generate(pipeline, asked, sampler, resolution, halvings)
    fit = {k: fit_meta[k] for k in ("fit", "peak_memory_mb", "seconds") if k in fit_meta}

    def description(seconds: float) -> dict[str, Any]:
        return {
            "fit": fit,
            "images": len(rows),
            "sampling_seconds": round(seconds, 3),
            **engine,
            **noted(halvings),
        }

    write_generations(job, rows, made, description)
