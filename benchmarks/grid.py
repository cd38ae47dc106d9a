"""How long an experiment takes on this machine, by the jobs of a run that is done.

    python benchmarks/grid.py .snakemake/log/*.log --run params.yaml --of experiments/micro-full.yaml

Snakemake's log says when every job began and ended. A job of the other experiment is expected to take what jobs of its kind took: of the
same step, method and preset, suite, detector or measure; where the run had none of that, of the nearest kind it had. Jobs that make or
look at images are counted by the image. Keys are left out: sources may have changed since the run. The last line printed is JSON."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from palimpsest import params
from palimpsest.cells import Cell
from palimpsest.needs import Needs
from palimpsest.plan.build import Plan, build

ROOT = Path(__file__).parents[1]
STAMP = re.compile(r"^\[(\w+ \w+ +\d+ [\d:]+ \d+)\]$")
JOB, DONE = re.compile(r"^ +jobid: (\d+)$"), re.compile(r"^Finished jobid: (\d+) ")
OUTPUT = re.compile(r"^ +output: ([^,\n]+)")
# What tells jobs of a step apart, the most telling last: kinds are looked for with all of it, then with less.
FIELDS = ("detector", "measure", "suite", "method", "preset")
KEY = re.compile(r"[.-][0-9a-f]{16}(?=[./])")
Kind = tuple[str, ...]


def jobs_of(log: Path) -> Iterator[tuple[str, float]]:
    """(first output, seconds) of every job that ended."""
    now, output, begun = datetime.min, "", {}
    for line in log.read_text(encoding="utf-8").splitlines():
        if found := STAMP.match(line):
            now = datetime.strptime(" ".join(found[1].split()), "%a %b %d %H:%M:%S %Y")
        elif found := OUTPUT.match(line):
            output = found[1]
        elif found := JOB.match(line):
            begun[found[1]] = (output, now)
        elif (found := DONE.match(line)) and found[1] in begun:
            output, began = begun.pop(found[1])
            yield output, (now - began).total_seconds()


def kinds(cell: Cell) -> list[Kind]:
    """The kinds a cell is of, the narrowest first."""
    named = [f"{name}={cell.where[name]}" for name in FIELDS if name in cell.where]
    return [(cell.step, *named[:end]) for end in range(len(named), -1, -1)]


class Times:
    """What jobs took, by kind: all of them, and how many images they had."""

    def __init__(self, plans: Sequence[Plan], jobs: Mapping[str, float]) -> None:
        self.sums: dict[Kind, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        left = dict(jobs)
        for plan in plans:
            needs = Needs(plan)
            for path, cell in plan.cells.items():
                seconds = left.pop(KEY.sub("", path), None)
                if seconds is None:
                    continue
                for kind in kinds(cell):
                    for position, amount in enumerate((seconds, 1, needs.images(cell))):
                        self.sums[kind][position] += amount

    def expected(self, cell: Cell, images: int) -> tuple[float, bool] | None:
        """Seconds of a cell, and whether jobs of just its kind were there."""
        for kind in (found := kinds(cell)):
            if kind in self.sums:
                seconds, jobs, looked = self.sums[kind]
                each = seconds / looked * images if looked and images else seconds / jobs
                return each, kind == found[0]
        return None


def report(times: Times, other: Plan, cores: int) -> dict[str, object]:
    """Print the expected time step by step; the sums as plain data."""
    needs = Needs(other)
    rows: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    unknown: list[str] = []
    for cell in other.cells.values():
        said = times.expected(cell, needs.images(cell))
        if said is None:
            unknown.append(cell.step)
            continue
        row = rows[cell.step]
        row[0] += 1
        row[1] += said[0]
        row[2] += said[1]
    print(f"{'step':15s} {'jobs':>6s} {'of a kind that ran':>18s} {'hours of one job at a time':>27s}")
    for step, (jobs, seconds, same) in rows.items():
        print(f"{step:15s} {jobs:6.0f} {same:18.0f} {seconds / 3600:27.2f}")
    total = sum(row[1] for row in rows.values()) / 3600
    print(
        f"{'all':15s} {sum(row[0] for row in rows.values()):6.0f} {sum(row[2] for row in rows.values()):18.0f} {total:27.2f}"
    )
    print(
        f"{total / cores:.2f} hours with {cores} jobs at a time"
        + (f"; nothing known of {sorted(set(unknown))}" if unknown else "")
    )
    return {
        "hours": round(total, 3),
        "cores": cores,
        "wall": round(total / cores, 3),
        "unknown": len(unknown),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="+", type=Path, help="Snakemake's logs of the run")
    parser.add_argument(
        "--run",
        nargs="+",
        default=["params.yaml"],
        help="settings of what ran: params.yaml or overlays, in the order in which jobs are looked up",
    )
    parser.add_argument("--of", required=True, help="settings of the other experiment")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    given = parser.parse_args(arguments)

    def plan(path: str) -> Plan:
        overlay = [] if Path(path).name == "params.yaml" else [Path(path)]
        return build(params.load(Path("params.yaml"), *overlay), Path("."))

    jobs = {KEY.sub("", output): seconds for log in given.logs for output, seconds in jobs_of(log)}
    times = Times([plan(path) for path in given.run], jobs)
    ran = sum(times.sums[kind][1] for kind in times.sums if len(kind) == 1)
    if not ran:
        raise SystemExit(
            f"none of the {len(jobs)} jobs in these logs is of {', '.join(given.run)}: is it what they ran?"
        )
    hours = sum(times.sums[kind][0] for kind in times.sums if len(kind) == 1) / 3600
    print(f"{ran:.0f} jobs of {', '.join(given.run)} took {hours:.2f} hours of one job at a time\n")
    print(json.dumps(report(times, plan(given.of), given.cores)))


if __name__ == "__main__":
    main()
