from pathlib import Path

from palimpsest import snake

PLAN = snake.plan(workflow)


wildcard_constraints:
    key="[0-9a-f]{16}",
    shard=r"\d+",
    suite="[a-z0-9_]+",
    theme="[a-z0-9_]+",
    name="[a-z0-9_]+",
    method="[a-z0-9_]+",
    preset="[A-Za-z0-9_.-]+",
    detector="[a-z0-9_]+",
    measure="[a-z0-9_]+",
    variant="[^/]+",
    experiment="[a-z0-9_]+",


onstart:
    snake.begin(PLAN, workflow)


onsuccess:
    snake.end(PLAN, failed=False)


onerror:
    snake.end(PLAN, failed=True)


localrules:
    all,
    partial,


rule all:
    default_target: True
    input:
        ancient(PLAN.final.path),


# The report of what is there after a run with failures: `snakemake partial`.
rule partial:
    input:
        snake.partial(PLAN),


include: "rules/prompts.smk"
include: "rules/keywords.smk"
include: "rules/images.smk"
include: "rules/masks.smk"
include: "rules/erase.smk"
include: "rules/generate.smk"
include: "rules/score.smk"
include: "rules/quality.smk"
include: "rules/aggregate.smk"
include: "rules/classifiers.smk"
include: "rules/report.smk"
include: "rules/world.smk"
