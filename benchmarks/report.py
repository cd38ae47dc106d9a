"""Wall time and peak memory of a whole run from nothing, in a fresh clone of the committed state.

    python benchmarks/report.py                                      # params.yaml
    python benchmarks/report.py --configfile experiments/tiny.yaml

Memory is the sum over all processes of the run of what each holds for itself (proportional set size), sampled every two seconds. The last
line printed is JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def held(process: psutil.Process) -> float:
    """Megabytes held by a process and all its children, shared pages counted once."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss / 2**20
        except psutil.Error:  # it has just ended
            continue
    return total


def measure(command: list[str], folder: Path) -> tuple[float, float, int]:
    """Seconds, peak megabytes and exit status of a command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder / "src")}
    began, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL) as running:
        watched = psutil.Process(running.pid)
        while running.poll() is None:
            peak = max(peak, held(watched))
            time.sleep(2)
    return time.perf_counter() - began, peak, running.returncode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configfile", action="append", default=[], help="overlays of params.yaml")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--keep", type=Path, help="clone to this new folder and keep what was made there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch) / "project"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        overlays = ["--configfile", *options.configfile] if options.configfile else []
        seconds, peak, status = measure([sys.executable, "-m", "snakemake", *overlays], folder)
        count = {
            place: len(list((folder / place).rglob("*.parquet")))
            for place in ("data/generations", "data/scores")
        }
    figures = {
        "processors": os.cpu_count(),
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak),
        "generation_files": count["data/generations"],
        "score_files": count["data/scores"],
        "exit_status": status,
    }
    if options.json and status == 0:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))
    sys.exit(status)


if __name__ == "__main__":
    main()
