"""Step `generate`: the images of one method, variant and suite shard. Prompts that the gate excluded are not in it."""

from __future__ import annotations

from palimpsest import store
from palimpsest.job import Job
from palimpsest.steps.common import (
    GENERATION_COLUMNS,
    artifact_of,
    generation_table,
    method_of,
    model_of,
    sampler_of,
    target_of,
)


def run(job: Job) -> None:
    from palimpsest.sampling.loop import Request, generate

    sampler = sampler_of(job)
    module, settings = method_of(job)
    artifact, fit_meta = artifact_of(job)
    index, size = job.args["shard"]
    frame = store.read_parquet(job.one("prompts").path).filter(gate="ok")
    rows = frame.slice(index * size, size).select(GENERATION_COLUMNS).to_dicts()
    asked = [Request(r["image_id"], r["prompt"], r["seed"]) for r in rows]
    resolution = job.args["model"]["resolution"]
    if hasattr(module, "produce"):
        made = module.produce(asked, settings, resolution, job.where["suite"])
    else:
        pipeline = module.apply(model_of(job), artifact, target_of(job), settings)
        made = generate(pipeline, asked, sampler, resolution)
    table = generation_table(rows, made)
    spent = table.column("seconds").to_pylist()
    fit = {k: fit_meta[k] for k in ("fit", "peak_memory_mb", "seconds") if k in fit_meta}
    extra = {"fit": fit, "images": len(rows), "sampling_seconds": round(sum(s or 0.0 for s in spent), 3)}
    job.write_parquet(table, extra, image_columns=["image"])
