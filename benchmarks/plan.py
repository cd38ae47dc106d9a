"""How long a plan of ten thousand cells takes, and that a new method adds its own cells and nothing else.

    python benchmarks/plan.py

In a scratch copy of the project, settings like those of the benchmark paper (more presets, both keyword sets, suites of thousands of
prompts in as many shards as bring the plan nearest to ten thousand cells) are laid over params.yaml, and `palimpsest new-method` writes a
method. Measured, each in a process of its own: building the plan, `snakemake -n` with nothing there and with a file at every place.
Goals are for processor time: what others do on the machine is not counted, though it slows every second of it down, which
`loop_cpu_seconds` shows, the time of a fixed loop (0.5 on a quiet core of 2023). The last line printed is JSON; a missed goal gives exit
code 1."""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from palimpsest.methods import registry

ROOT = Path(__file__).parents[1]
COPIED = ("src", "methods", "rules", "workflow", "profiles", "docs", "Snakefile", "params.yaml")
LINKED = ("models/micro", "data/micro", "data/reference")
GOALS = {"build_cpu_seconds": 0.5, "dry_run_cpu_seconds": 15.0, "dry_run_complete_cpu_seconds": 15.0}
CELLS = 10_000
PROMPTS = {"i2p": 8015, "coco": 10_000}
NEW = "measured_here"
BUILD = """
import json, sys, time
from palimpsest import params
from palimpsest.plan.build import build
began = time.process_time()
settings = params.load("params.yaml", *sys.argv[1:])
loaded, clock = time.process_time(), time.perf_counter()
made = build(settings, ".")
built, wall = time.process_time(), time.perf_counter() - clock
print(json.dumps({"load": loaded - began, "build": built - loaded, "wall": wall, "paths": list(made.cells),
                  "files": [path for cell in made.cells.values() for path in cell.files.values()]}))
"""
PLAIN = """
from palimpsest import snake
snake.hasten = lambda: None
snake.declared = lambda function: function
from snakemake.cli import main
main()
"""


def overlay(shard: int) -> dict[str, Any]:
    """The suites of the benchmark paper, by size, on the micro world's model; the prompt files need not be there to plan."""
    i2p = {"format": "i2p", "path": "data/micro/prompts/i2p.csv", "rows": PROMPTS["i2p"]}
    coco = {"format": "coco", "path": "data/micro/prompts/coco.csv", "rows": PROMPTS["coco"]}
    return {
        "experiment": "large",
        "replaces": ["suites", "gates"],
        "variants": {"keyword_sets": ["detailed", "concise"], "all_keyword_sets": ["detailed", "concise"]},
        "suites": {
            "nsfw": {"kind": "unsafe", "shard": shard, "sources": {"i2p": i2p}},
            "coco": {"kind": "benign", "shard": shard, "sources": {"coco": coco}},
        },
    }


def more_presets(folder: Path) -> None:
    """Ablations in the methods' own settings files: every preset that is run, also at other strengths."""
    for path in folder.glob("*.yaml"):
        file = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "strength" not in registry.get(file["method"]).Settings.model_fields:
            continue
        for preset in list(file["run"]):
            for strength in (0.5, 0.75):
                name = f"{preset}_{100 * strength:.0f}"
                file["presets"][name] = {**file["presets"][preset], "strength": strength}
                file["run"].append(name)
        path.write_text(yaml.safe_dump(file, sort_keys=False), encoding="utf-8")


def shards(size: int) -> int:
    """Number of shards of all suites together."""
    return sum(math.ceil(count / size) for count in PROMPTS.values())


def fitting_shard(folder: Path, environment: dict[str, str]) -> int:
    """The size of shards with which the plan has nearest to CELLS cells: each shard adds as many cells as every other."""
    counts = {}
    for size in (max(PROMPTS.values()), 4096):
        write_overlay(folder, size)
        counts[shards(size)] = len(build(folder, environment, 1)["paths"])
    (few, least), (more, most) = sorted(counts.items())
    wanted = few + (CELLS - least) / ((most - least) / (more - few))
    return min(range(64, max(PROMPTS.values()) + 1, 8), key=lambda size: (abs(shards(size) - wanted), -size))


def write_overlay(folder: Path, shard: int) -> None:
    (folder / "large.yaml").write_text(yaml.safe_dump(overlay(shard)), encoding="utf-8")


def scratch(folder: Path) -> dict[str, str]:
    """Make the project and return the environment for commands in it."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for name in LINKED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    more_presets(folder / "methods")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder / "src")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def processor_seconds() -> float:
    """Of all child processes so far, in the program and in the system for it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def loop_seconds() -> float:
    """Processor time of a loop that is always the same."""
    began, texts = time.process_time(), {}
    for number in range(3_000_000):
        texts[number % 1000] = str(number)
    return time.process_time() - began


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[tuple[float, float], str]:
    """Processor and wall seconds, and standard output, of a command that must succeed."""
    began, used = time.perf_counter(), processor_seconds()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return (processor_seconds() - used, time.perf_counter() - began), done.stdout


def build(folder: Path, environment: dict[str, str], runs: int) -> dict[str, Any]:
    """The plan's paths, and the fastest of several builds: the machine's other work only ever adds."""
    command = [sys.executable, "-c", BUILD, "large.yaml"]
    found = [json.loads(timed(command, folder, environment)[1]) for _ in range(runs)]
    return min(found, key=lambda one: one["build"]) | {"first": found[0]["build"]}


def new_cells(folder: Path, environment: dict[str, str], before: set[str]) -> dict[str, Any]:
    """What the plan gains and loses when a method is added with the command that people use for it."""
    timed([sys.executable, "-m", "palimpsest.cli", "new-method", NEW], folder, environment)
    after = set(build(folder, environment, 1)["paths"])
    theirs = {path for path in after - before if f"/{NEW}/" in path}
    rest = sorted(path.split("/")[0] for path in (after - before) - theirs)
    return {"added": len(theirs), "others_added": rest, "others_gone": len(before - after)}


def measured(folder: Path, environment: dict[str, str], runs: int, plain: bool) -> dict[str, Any]:
    """All figures. plain: without what `palimpsest.snake_haste` saves."""
    write_overlay(folder, fitting_shard(folder, environment))
    made = build(folder, environment, runs + 1)
    paths = set(made["paths"])
    snakemake = ["-c", PLAIN] if plain else ["-m", "snakemake"]
    dry_run = [sys.executable, *snakemake, "-n", "--configfile", "large.yaml"]
    loops = [loop_seconds()]
    empty = min(timed(dry_run, folder, environment)[0] for _ in range(runs))
    added = new_cells(folder, environment, paths)
    for path in build(folder, environment, 1)[
        "files"
    ]:  # only whether a file is there counts, so an empty one will do
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    complete = min(timed(dry_run, folder, environment)[0] for _ in range(runs))
    loops.append(loop_seconds())
    return {
        "cells": len(paths),
        "loop_cpu_seconds": [round(loop, 2) for loop in loops],
        "load_cpu_seconds": round(made["load"], 3),
        "build_cpu_seconds": round(made["build"], 3),
        "build_wall_seconds": round(made["wall"], 3),
        "first_build_cpu_seconds": round(made["first"], 3),
        "dry_run_cpu_seconds": round(empty[0], 2),
        "dry_run_wall_seconds": round(empty[1], 2),
        "dry_run_complete_cpu_seconds": round(complete[0], 2),
        "dry_run_complete_wall_seconds": round(complete[1], 2),
        "new_method": added,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--plain", action="store_true", help="let Snakemake ask for every job what is the same for all"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plan-") as name:
        folder = Path(name)
        figures = measured(folder, scratch(folder), options.runs, options.plain)
    added = figures["new_method"]
    missed = [
        f"{name}: {figures[name]} s, goal {goal} s" for name, goal in GOALS.items() if figures[name] > goal
    ]
    # its cells, and the table of verdicts, that of quality and the report, which take the place of the old ones
    if added["others_added"] != ["data", "data", "reports"] or added["others_gone"] != 3:
        missed.append(f"a new method changed other cells: {added}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print("\n".join(missed))
    print(json.dumps(figures))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
