"""Step `renders`: what a detector says about held-out pictures of the micro world, beside what they really show (rules/classifiers.smk)."""

from __future__ import annotations

from palimpsest import store
from palimpsest.detectors import contract
from palimpsest.job import Job
from palimpsest.specs import Detector, Rule
from palimpsest.steps.score import judge_frame
from palimpsest.world.held_out import held_out


def run(job: Job) -> None:
    import polars as pl

    spec = Detector(**job.args["detector"], batch=job.hints.get("batch", 64))
    module = contract.find(spec.kind)
    themes = job.args["themes"]
    images, truths = held_out(job.args["count"], job.args["seed"])
    unknown = sorted(set(themes) - set(truths[0]))
    if unknown:
        raise ValueError(
            f"themes {unknown} are none of the micro world, whose pictures have exact labels for {list(truths[0])}: "
            "set `classifiers.renders: 0`"
        )
    frame = pl.DataFrame(
        {
            "image_id": [f"renders/{index}/0" for index in range(len(images))],
            "source": "renders",
            "prompt_id": range(len(images)),
            "repetition": 0,
            "decision": "generated",
            "image": [{"bytes": store.encode_png(image), "path": ""} for image in images],
        }
    )
    rules = {name: Rule(kind="joined", texts=texts) for name, texts in job.args["texts"].items()}
    judge = module.load(spec, contract.device())
    questions = module.questions(themes, rules, job.args["in_detail"])
    scores = judge_frame(judge, questions, frame, spec.batch)
    # beside every score, whatever its label: detectors differ in what they are asked
    known = {
        f"shows/{theme}": pl.Series([truth[theme] for truth in truths], dtype=pl.Boolean) for theme in themes
    }
    shown = pl.DataFrame({"image_id": frame["image_id"], **known})
    table = scores.join(shown, on="image_id", how="left", maintain_order="left")
    job.write_parquet(table, {"detector": judge.identity(), "questions": questions})
