"""Seconds a small job needs with and without the fork server, in one run.

    python benchmarks/startup.py models/micro/stable-diffusion

The job imports what a generation imports and loads the checkpoint. The last line printed is JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from palimpsest import closure, forkserver

ROOTS = ("palimpsest.steps.images", "palimpsest.job")


def spec(model: str, number: int) -> dict[str, object]:
    """A cell that makes one training image in one step."""
    sampler = {"name": "dpmsolver++", "steps": 1, "guidance": 1.0, "dtype": "float32"}
    args = {
        "model": {"path": model, "resolution": 64},
        "sampler": sampler,
        "templates": ["{}"],
        "subjects": ["a red robot"],
        "avoid": [],
        "start": 0,
        "stop": 1,
        "seed": number,
    }
    return {
        "step": "images",
        "where": {"theme": "none", "role": "safe_images", "chunk": "0_1"},
        "key": f"{number:016x}",
        "args": args,
        "inputs": [],
        "output": f".palimpsest/startup/{number}.parquet",
        **closure.stamp(ROOTS),
        "recipe": {},
        "hints": {"batch": 1, "threads": 1},
    }


def alone(asked: dict[str, object]) -> None:
    """The job in an interpreter of its own."""
    code = "import json, sys; from palimpsest.job import run; run(json.load(sys.stdin))"
    subprocess.run([sys.executable, "-c", code], input=json.dumps(asked), text=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a diffusers folder")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    began = time.perf_counter()
    server = forkserver.start()
    log = Path(".palimpsest/startup/log")
    log.parent.mkdir(parents=True, exist_ok=True)
    if server is None:
        raise SystemExit("no server can be had here (a GPU is in use, or PALIMPSEST_FORKSERVER=0)")
    while not Path(os.environ[forkserver.SETTING]).exists():
        time.sleep(0.05)
    forkserver.ask(spec(options.model, 0), log)
    ready = time.perf_counter() - began
    seconds: dict[str, list[float]] = {"alone": [], "forked": []}
    for number in range(1, options.runs + 1):
        began = time.perf_counter()
        alone(spec(options.model, number))
        seconds["alone"].append(time.perf_counter() - began)
        began = time.perf_counter()
        if forkserver.ask(spec(options.model, 100 + number), log) != 0:
            raise SystemExit(f"the forked job failed; see {log}")
        seconds["forked"].append(time.perf_counter() - began)
    forkserver.stop(server)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {
        "server_ready_seconds": round(ready, 2),
        "own_interpreter_seconds": round(medians["alone"], 2),
        "forked_seconds": round(medians["forked"], 2),
        "ratio": round(medians["alone"] / medians["forked"], 2),
    }
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
