"""Time from a million scores to a report: the steps `aggregate`, `quality_table` and `report` on made-up scores, as jobs of their own.

    python benchmarks/aggregate.py                     # a million rows of scores
    python benchmarks/aggregate.py --rows 100000 --keep FOLDER

Scores, comparisons and features are random but shaped as real ones: the plan of params.yaml, unsafe images of four
sources, as many as the rows allow, contact sheets of 100 kB, and 48 benign images with features of 32 dimensions per cell.
The last line printed is JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest import closure, params, store
from palimpsest.cells import Cell
from palimpsest.plan.build import Plan, build
from palimpsest.steps.compare import IMAGES
from palimpsest.steps.reference import IMAGE

ROOT = Path(__file__).parents[1]
CODE = """import json, os, sys
from palimpsest.job import run
run(json.load(sys.stdin))
print(sum(os.times()[:4]))  # of this process and of those that it started
"""
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
    store.write_parquet(frame, path, {"generation": {**made, "environment": environment}})
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


def run(cell: Cell, folder: Path) -> dict[str, float]:
    """Run one cell as a job in a process of its own: wall and processor seconds."""
    spec = cell.spec()
    spec["hints"] = {**spec["hints"], "threads": 1}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": str(Path(closure.__file__).parents[1])}
    began = time.perf_counter()
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(
        command,
        input=json.dumps(spec),
        text=True,
        check=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
    )
    wall, spent = time.perf_counter() - began, float(done.stdout.split()[-1])
    return {"seconds": round(wall, 2), "processor_seconds": round(spent, 2)}


def measure(folder: Path, wanted: int) -> dict[str, Any]:
    """Write made-up inputs of about `wanted` rows of scores and run the three steps."""
    plan = plan_of(folder)
    scores = [c for c in plan.cells.values() if c.step == "score" and c.where["suite"] == "nsfw"]
    labels = sum(len(labels_of(cell, plan)) for cell in scores)
    rows = write_inputs(plan, folder, max(100, wanted // labels))
    found: dict[str, Any] = {"score_rows": rows, "score_files": len(scores) * 2}
    finals = {
        cell.step: cell
        for cell in plan.cells.values()
        if cell.step in ("aggregate", "quality_table", "report")
    }
    began = time.perf_counter()
    with (
        ThreadPoolExecutor() as pool
    ):  # neither needs the other, so Snakemake runs both at once on two processors
        tables = {
            step: pool.submit(run, finals[step], folder)
            for step in ("aggregate", "quality_table")
            if step in finals
        }
        found |= {step: job.result() for step, job in tables.items()}
    found["report"] = run(finals["report"], folder)
    found["seconds"] = round(time.perf_counter() - began, 2)
    steps = [value for value in found.values() if isinstance(value, dict)]
    found["processor_seconds"] = round(sum(step["processor_seconds"] for step in steps), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--keep", type=Path, help="write into this folder and keep it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        figures = {"processors": os.cpu_count(), **measure(folder, options.rows)}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
