"""What the processors of this machine are worth together: images per second of one job, and of as many jobs as there are processors.

    python benchmarks/side_by_side.py --seconds 20

Processors of a virtual machine often share a core, caches and memory. Each job is a process with one thread that makes images of the
micro world in batches, as in a run. The last line printed is JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAD = 25.0  # seconds for every job to load its libraries


def work(begin: float, seconds: float) -> int:
    """Images made between two times, by a loop that is warm when it begins."""
    import torch

    from palimpsest.params import load
    from palimpsest.sampling.load import load_pipeline
    from palimpsest.sampling.loop import Request, generate

    torch.set_num_threads(1)
    params = load(ROOT / "params.yaml")
    pipeline = load_pipeline(params.model)
    requests = [Request(str(i), "a red robot on the beach", i) for i in range(params.sampler.batch)]

    def batch() -> int:
        return len(list(generate(pipeline, requests, params.sampler, params.model.resolution)))

    batch()
    if time.time() > begin:
        raise SystemExit(f"loading took more than {LEAD} s; this machine has other work")
    while time.time() < begin:
        batch()
    made, began = 0, time.time()
    while time.time() < began + seconds:
        made += batch()
    return round(made * seconds / (time.time() - began))


def rate(jobs: int, seconds: float) -> float:
    """Images per second of all jobs together."""
    command = [sys.executable, __file__, "--work", str(time.time() + LEAD), "--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)
        for _ in range(jobs)
    ]
    made = [int(process.communicate()[0].split()[-1]) for process in running]
    return sum(made) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--work", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(work(given.work, given.seconds))
        return
    jobs = os.cpu_count() or 1
    alone = [rate(1, given.seconds)]
    together = rate(jobs, given.seconds)
    alone.append(rate(1, given.seconds))
    one = sum(alone) / len(alone)
    found = {
        "processors": jobs,
        "images_per_second_of_one_job": round(one, 2),
        "images_per_second_together": round(together, 2),
        "processors_worth": round(together / one, 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
