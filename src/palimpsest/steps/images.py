"""Step `images`: training images of one theme and role, made by the unerased model from templated prompts.

Safe images are made with the theme's keywords as negative prompt, as the official concept-ablation code does for such concepts.
"""

from __future__ import annotations

from palimpsest.job import Job
from palimpsest.prompts import gate
from palimpsest.steps.common import model_of, noted, sampler_of
from palimpsest.steps.generations import write_generations


def requests(job: Job) -> list[dict[str, object]]:
    """Row i pairs template and subject round robin; its seed depends on theme, role and i only, so larger sets extend smaller ones."""
    from palimpsest.sampling.noise import image_seed

    templates, subjects = job.args["templates"], job.args["subjects"]
    rows: list[dict[str, object]] = []
    for i in range(job.args["start"], job.args["stop"]):
        subject = subjects[i % len(subjects)]
        prompt = templates[(i // len(subjects)) % len(templates)].format(subject)
        source = f"{job.where['theme']}-{job.where['role']}"
        seed = image_seed(job.args["seed"], source, i, 0)
        rows.append(
            {
                "image_id": f"{source}/{i:05d}",
                "source": source,
                "prompt_id": i,
                "repetition": 0,
                "prompt": prompt,
                "seed": seed,
            }
        )
    return rows


def run(job: Job) -> None:
    from palimpsest.methods import sd_np
    from palimpsest.methods.contract import Artifact, Target, ThemeTarget
    from palimpsest.sampling.loop import Request, generate
    from palimpsest.sampling.memory import Halving

    sampler = sampler_of(job)
    pipeline = model_of(job)
    if job.args["avoid"]:
        target = Target((ThemeTarget(job.where["theme"], tuple(job.args["avoid"]), ""),))
        pipeline = sd_np.apply(pipeline, Artifact(), target, sd_np.Settings())
    rows = requests(job)
    gate.require(str(row["prompt"]) for row in rows)
    asked = [Request(str(r["image_id"]), str(r["prompt"]), int(str(r["seed"]))) for r in rows]
    halvings: list[Halving] = []
    made = generate(pipeline, asked, sampler, job.args["model"]["resolution"], halvings)
    write_generations(job, rows, made, lambda _: {"images": len(rows), **noted(halvings)})
