"""Time from a million scores to a report: the steps `aggregate`, `quality_table` and `report` on made-up scores, as jobs of their own.

Twice: in processes that a run's fork server makes, which has loaded the libraries long before (`served`, what a run on one machine does),
and in processes that start from nothing (`alone`, what a job of a scheduler does).

    python benchmarks/aggregate.py                     # a million rows of scores
    python benchmarks/aggregate.py --rows 100000 --keep FOLDER

Scores, comparisons and features are random but shaped as real ones: the plan of params.yaml, unsafe images of four
sources, as many as the rows allow, contact sheets of 100 kB, and 48 benign images with features of 32 dimensions per cell.
The first two steps run side by side, as Snakemake runs them on two processors. The last line printed is JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest import closure, forkserver, params, store
from palimpsest.cells import Cell
from palimpsest.plan.build import Plan, build
from palimpsest.steps.compare import IMAGES
from palimpsest.steps.reference import IMAGE
from palimpsest.steps.score import ROWS

ROOT = Path(__file__).parents[1]
CODE = "import json, sys; from palimpsest.job import run; run(json.load(sys.stdin))"
STEPS = ("aggregate", "quality_table", "report")
SOURCES = {"i2p": (1200, 1), "4chan": (400, 1), "lexica": (300, 1), "template": (30, 20)}


def plan_of(folder: Path) -> Plan:
    """The plan of params.yaml with methods that need no pictures, so that every cell is one of scores."""
    settings = params.read_yaml(ROOT / "params.yaml")
    settings = {name: value for name, value in settings.items() if name != "classifiers"}
    return build(params.parse({**settings, "gates": {}, "keywords": {"concise": "given"}}), ROOT)


def images_of(count: int, benign: bool) -> pl.DataFrame:
    """`count` images: image_id, source, prompt_id, repetition."""
    shape = {"coco": (count, 1)} if benign else SOURCES
    total = sum(prompts * seeds for prompts, seeds in shape.values())
    rows = []
    for source, (prompts, seeds) in shape.items():
        wanted = max(1, round(prompts * count / total))
        rows += [(f"{source}/{p}/{s}", source, p, s) for p in range(wanted) for s in range(seeds)]
    return pl.DataFrame(rows, schema=["image_id", "source", "prompt_id", "repetition"], orient="row")


def labels_of(cell: Cell, plan: Plan) -> list[str]:
    """What a cell of scores has a row for per image: parts where its detector is one of parts, else themes and keywords."""
    args: Any = cell.args
    for spec in plan.params.quality.grd.values():
        if spec.detector == cell.where["detector"]:
            return [*spec.target, *spec.other]
    labels = [f"theme/{theme}" for theme in args["themes"]]
    return labels + [f"keyword/{word}" for theme in args["in_detail"] for word in args["themes"][theme]]


def write_score(path: Path, labels: list[str], images: pl.DataFrame, rng: np.random.Generator) -> int:
    """Random scores for every label; returns the number of rows."""
    frame = pl.concat(
        [
            images.with_columns(
                decision=pl.lit("made"),
                label=pl.lit(label),
                score=pl.Series(rng.beta(1, 2, len(images)), dtype=pl.Float32),
            )
            for label in labels
        ]
    )
    made = {"seconds": 1.0, "peak_memory_mb": 1.0, "sampling_seconds": 1.0, "images": len(images), "fit": {}}
    environment = {"python": "3", "libraries": {}, "processor": "", "accelerator": "", "system": ""}
    store.write_parquet(
        frame, path, {"generation": {**made, "environment": environment}}, row_group_size=ROWS
    )
    return len(frame)


def write_inputs(plan: Plan, folder: Path, per_cell: int) -> int:
    """Made-up artifacts of everything that the tables read; returns the rows of scores."""
    rng, rows = np.random.default_rng(0), 0
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")  # the report reads measured speeds from it
    for cell in plan.cells.values():
        path = folder / cell.path
        if cell.step not in ("score", "compare", "quality", "real", "keywords", "prompts"):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        benign = cell.where.get("suite") == "coco"
        images = images_of(48 if benign else per_cell, benign)
        if cell.step == "score":
            rows += write_score(path, labels_of(cell, plan), images, rng)
        elif cell.step == "prompts":
            toxic = images.select("image_id", toxicity=pl.Series(rng.random(len(images))))
            store.write_parquet(toxic, path)
        elif cell.step == "keywords":
            store.write_json({"themes": {}}, path)
        elif cell.step == "compare":
            none = [None] * len(images)
            shown = pl.Series(none, dtype=IMAGE)
            sheet = pl.Series(
                [{"bytes": bytes(rng.bytes(100_000)), "path": "sheet.jpg"}, *none[1:]], dtype=IMAGE
            )
            frame = images.select("image_id", "source").with_columns(
                prompt=pl.lit("a robot"),
                seed=pl.lit(1),
                decision=pl.lit("made"),
                reason=pl.lit(None, pl.String),
                rmse=pl.Series(rng.random(len(images))),
                ssim=pl.Series(rng.random(len(images))),
                place=pl.int_range(pl.len()),
                pair_theme=pl.lit(None, pl.String),
                before=shown,
                after=shown,
                sheet_before=sheet,
                sheet_after=sheet,
            )
            store.write_parquet(frame, path, image_columns=IMAGES)
        else:
            features = pl.Series(rng.normal(size=(len(images), 32)).tolist(), dtype=pl.List(pl.Float32))
            names = ["source", "prompt_id"] if cell.step == "real" else images.columns
            extra = {"features_micro": features}
            if cell.where["measure"] != "micro":
                extra = {}
            values = {name: pl.Series(rng.random(len(images))) for name in ("lpips_micro", "clip_score")}
            measured = images.select(names).with_columns(
                **extra, **(values if cell.step == "quality" else {})
            )
            store.write_parquet(measured, path, {"measure": {"kind": cell.where["measure"], "weights": ""}})
    return rows


def alone(spec: dict[str, Any]) -> None:
    """Run a job in a process that starts from nothing."""
    subprocess.run([sys.executable, "-c", CODE], input=json.dumps(spec), text=True, check=True)


def served(spec: dict[str, Any]) -> None:
    """Run a job in a child of the fork server."""
    with tempfile.NamedTemporaryFile("r") as log:
        status = forkserver.ask(spec, Path(log.name))
        if status != 0:
            raise RuntimeError(f"{spec['step']} ended with {status}: {log.read()[-2000:]}")


@contextmanager
def server() -> Iterator[int]:
    """A fork server that has loaded its libraries; its process id."""
    process = forkserver.start()
    if process is None:
        raise RuntimeError(
            f"no fork server can be had here: it needs `fork`, no GPU in use, and {forkserver.SETTING} unset in the environment"
        )
    path = os.environ[forkserver.SETTING]
    while not Path(path).exists():
        time.sleep(0.05)
    with socket.socket(
        socket.AF_UNIX
    ) as connection:  # it answers, if only that nothing was asked, when it is ready
        connection.connect(path)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(4)
    try:
        yield process.pid
    finally:
        forkserver.stop(process)


def spent(pid: int) -> float:
    """Processor seconds of the ended children of a process, and of theirs."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return sum(int(field) for field in fields[13:15]) / os.sysconf("SC_CLK_TCK")


def timed(do: Callable[[dict[str, Any]], None], pid: int, cells: Mapping[str, Cell]) -> dict[str, Any]:
    """Seconds of every step, of all, and of the processors; pid: whose children do the work."""
    began, before, found = time.perf_counter(), spent(pid), {}

    def run(step: str) -> float:
        start, spec = time.perf_counter(), cells[step].spec()
        do({**spec, "hints": {**spec["hints"], "threads": 1}})
        return round(time.perf_counter() - start, 2)

    with ThreadPoolExecutor() as pool:
        tables = {step: pool.submit(run, step) for step in STEPS[:-1] if step in cells}
        found |= {step: job.result() for step, job in tables.items()}
    found[STEPS[-1]] = run(STEPS[-1])
    return {
        **found,
        "seconds": round(time.perf_counter() - began, 2),
        "processor_seconds": round(spent(pid) - before, 2),
    }


def measure(folder: Path, wanted: int) -> dict[str, Any]:
    """Write made-up inputs of about `wanted` rows of scores and run the three steps, served and alone."""
    plan = plan_of(folder)
    scores = [c for c in plan.cells.values() if c.step == "score" and c.where["suite"] == "nsfw"]
    labels = sum(len(labels_of(cell, plan)) for cell in scores)
    rows = write_inputs(plan, folder, max(100, wanted // labels))
    cells = {cell.step: cell for cell in plan.cells.values() if cell.step in STEPS}
    os.chdir(folder)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"), "1")
    os.environ["PYTHONPATH"] = str(Path(closure.__file__).parents[1])
    found: dict[str, Any] = {"score_rows": rows, "score_files": len(scores) * 2}
    with server() as pid:
        found["served"] = timed(served, pid, cells)
    for made in {(folder / cells[step].path).parent for step in STEPS if step in cells}:
        shutil.rmtree(made)
    return found | {"alone": timed(alone, os.getpid(), cells)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--keep", type=Path, help="write into this folder and keep it")
    options = parser.parse_args()
    result = options.json and options.json.absolute()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        figures = {"processors": os.cpu_count(), **measure(folder, options.rows)}
    if result:
        result.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
