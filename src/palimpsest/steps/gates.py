"""Step `gates`: whether the micro world and its judge are good enough to measure anything with (rules/world.smk)."""

from __future__ import annotations

from palimpsest.job import Job
from palimpsest.world.gates import measure


def run(job: Job) -> None:
    job.write_json({"gates": measure(job.args, job.hints)})
