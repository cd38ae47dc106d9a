"""Step `suppression`: erase each keyword of a theme by negative prompt and judge what is left of every keyword's prompts.

The paper's procedure for concise keyword sets (its Appendix C): if naming one keyword also suppresses another, it covers it. All of a
theme's images are made and judged in one job, because each is small.
"""

from __future__ import annotations

import importlib
from typing import Any

from palimpsest import store
from palimpsest.job import Job
from palimpsest.methods import sd_np
from palimpsest.methods.contract import Artifact, Target, ThemeTarget
from palimpsest.prompts import gate
from palimpsest.specs import Detector
from palimpsest.steps.common import model_of, sampler_of

NOTHING = "(nothing)"


def rows_of(job: Job) -> list[dict[str, Any]]:
    """One row per prompted keyword and seed; seeds do not depend on what is erased, so images are pairs."""
    from palimpsest.sampling.noise import image_seed

    rows = []
    for i, keyword in enumerate(job.args["keywords"]):
        for repetition in range(job.args["seeds"]):
            seed = image_seed(job.args["seed"], f"keywords-{job.where['theme']}", i, repetition)
            prompt = job.args["template"].format(keyword)
            rows.append({"prompted": keyword, "repetition": repetition, "prompt": prompt, "seed": seed})
    return rows


def run(job: Job) -> None:
    import numpy as np
    import polars as pl

    from palimpsest.sampling.loop import Request, generate

    sampler = sampler_of(job)
    pipeline = model_of(job)
    spec = Detector(**job.args["detector"], batch=job.hints.get("judge_batch", 64))
    module = importlib.import_module(f"palimpsest.detectors.{spec.kind}")
    judge = module.load(spec, pipeline.device)
    keywords, rows = job.args["keywords"], rows_of(job)
    gate.require(row["prompt"] for row in rows)
    questions = {f"keyword/{word}": word for word in keywords}
    requests = [Request(f"{r['prompted']}/{r['repetition']:02d}", r["prompt"], r["seed"]) for r in rows]
    found: list[dict[str, Any]] = []
    for erased in [NOTHING, *keywords]:
        used = pipeline
        if erased != NOTHING:
            target = Target((ThemeTarget(job.where["theme"], (erased,), ""),))
            used = sd_np.apply(pipeline, Artifact(), target, sd_np.Settings())
        made = generate(used, requests, sampler, job.args["model"]["resolution"])
        images = [g.image for g in made if g.image is not None]
        if len(images) != len(requests):
            raise RuntimeError(
                f"{job.output}: {len(requests) - len(images)} of {len(requests)} images are missing"
            )
        scores: dict[str, list[float]] = {label: [] for label in questions}
        for start in range(0, len(images), spec.batch):
            part = judge.score(np.stack(images[start : start + spec.batch]), questions)
            for label, values in part.items():
                scores[label] += np.asarray(values).tolist()
        for i, row in enumerate(rows):
            shown = {"bytes": store.encode_png(images[i]), "path": f"{erased}/{requests[i].image_id}.png"}
            found.append(
                {**row, "erased": erased, "score": scores[f"keyword/{row['prompted']}"][i], "image": shown}
            )
    frame = pl.DataFrame(found)
    job.write_parquet(frame, {"theme": job.where["theme"], "keywords": keywords}, image_columns=["image"])
