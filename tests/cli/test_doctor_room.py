"""Disk and GPU memory against what the plan will do: estimates beside what steps really write."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from palimpsest import params, store
from palimpsest.cells import Cell
from palimpsest.cli import doctor_room as room
from palimpsest.findings import FAIL, OK, WARN, size
from palimpsest.needs import Needs
from palimpsest.plan.build import Plan, build
from tests.cli.conftest import ROOT

PAPER = "experiments/paper.yaml"


@pytest.fixture
def micro(project: Path) -> Plan:
    """The default experiment with its prompts and weights."""
    for name in ("models/micro", "data/micro", "data/reference"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).symlink_to(ROOT / name)
    return build(params.load("params.yaml"), ".")


@pytest.fixture
def paper(project: Path) -> Plan:
    return build(params.load("params.yaml", PAPER), ".")


def cells(made: Plan, step: str) -> list[Cell]:
    return [cell for cell in made.cells.values() if cell.step == step]


def test_images_are_counted_from_prompt_files_or_from_the_settings(micro: Plan, paper: Plan) -> None:
    needs = Needs(micro)
    rows = {
        "nsfw": sum(
            len(pl.read_csv(f"data/micro/prompts/{name}.csv"))
            for name in ("i2p", "4chan", "lexica", "template")
        ),
        "coco": len(pl.read_csv("data/micro/prompts/coco.csv")),
    }
    for cell in cells(micro, "generate"):
        assert needs.images(cell) == rows[cell.where["suite"]]
    coco = [c for c in cells(paper, "generate") if c.where["method"] == "sd" and c.where["suite"] == "coco"]
    assert sum(Needs(paper).images(cell) for cell in coco) == 10000 and len(coco) == 10
    chunk = next(c for c in cells(micro, "images") if c.where["chunk"] == "0_200")
    assert needs.images(chunk) == 200


def test_noisy_images_take_the_room_that_is_planned_for_them(micro: Plan) -> None:
    """The constant is an upper bound for what a diffusion model paints: noise over a smooth picture, at this size."""
    rng, side = np.random.default_rng(0), micro.params.model.resolution
    cell = next(c for c in cells(micro, "generate") if c.where["suite"] == "coco")
    ramp = np.linspace(40, 200, side)[None, :, None] + np.zeros((side, side, 3))
    pictures = [
        np.clip(ramp + rng.normal(0, 6, (side, side, 3)), 0, 255).astype(np.uint8)
        for _ in range(Needs(micro).images(cell))
    ]
    rows = [{"bytes": store.encode_png(picture), "path": f"{n}.png"} for n, picture in enumerate(pictures)]
    path = micro.root / "measured.parquet"
    store.write_parquet(pl.DataFrame({"image": rows}), path, {"recipe": cell.recipe}, ["image"])
    planned = Needs(micro).disk([cell])["generate"]
    assert 0.5 * planned < path.stat().st_size < 1.3 * planned


def test_what_was_written_counts_more_than_constants(micro: Plan) -> None:
    first, *others = [c for c in cells(micro, "generate") if c.where["suite"] == "nsfw"]
    (micro.root / first.path).parent.mkdir(parents=True)
    (micro.root / first.path).write_bytes(b"x" * 7_000_000)
    assert Needs(micro).disk(others) == {"generate": pytest.approx(7_000_000 * len(others), rel=0.001)}


def test_the_disk_is_enough_tight_or_too_small(micro: Plan) -> None:
    parts = Needs(micro).disk(micro.needed())
    wanted = sum(parts.values())
    for free, level in ((wanted + 2 * room.SPARE, OK), (wanted + 1, WARN), (wanted // 2, FAIL)):
        check = room.room_for(parts, 3, free)
        assert check.level == level and size(wanted) in check.found and size(free) in check.found
        assert bool(check.remedy) == (level != OK)
    (check,) = room.disk(micro)
    assert f"{size(shutil.disk_usage('.').free)} free; {len(micro.needed())} cell(s)" in check.found


def test_a_finished_experiment_needs_no_room(micro: Plan) -> None:
    report = micro.root / micro.final.path
    report.parent.mkdir(parents=True)
    report.write_text("done")
    (check,) = room.disk(micro)
    assert check.level == OK and "nothing is to be made" in check.found


def test_the_paper_needs_tens_of_gigabytes_and_a_gpu(paper: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(Needs(paper).disk(paper.needed()).values())
    assert 50 << 30 < total < 2000 << 30
    monkeypatch.setenv("PATH", "/nowhere")
    (check,) = room.gpu(paper)
    assert check.level == WARN and "docs/cluster.md" in check.remedy and "judge vqa" in check.found


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program in the place of the driver's, since machines without a GPU have none."""
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}/bin{os.pathsep}/usr/bin")


def test_the_smallest_gpu_must_hold_the_heaviest_job(
    paper: Plan, micro: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(tmp_path, monkeypatch, "echo 'Large, 81920'; echo 'Small, 8192'")
    (check,) = room.gpu(paper)
    assert check.level == WARN and "Small, 8.0 GiB" in check.found and "batch" in check.remedy
    assert room.gpu(micro) and next(iter(room.gpu(micro))).level == OK
    driver(tmp_path, monkeypatch, "echo 'no devices were found' >&2; exit 6")
    (check,) = room.gpu(micro)
    assert check.level == WARN and "no devices were found" in check.found


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no GPU here")
def test_the_real_driver_is_understood(micro: Plan) -> None:
    assert subprocess.run(["nvidia-smi"], capture_output=True).returncode == 0
    found = room.gpus()
    assert isinstance(found, list) and all(memory > 1 << 30 for _, memory in found)


def test_every_cell_has_memory_and_time(micro: Plan, paper: Plan) -> None:
    for made in (micro, paper):
        needs = Needs(made)
        for cell in made.cells.values():
            assert 1024 < needs.memory_mb(cell) < 64 * 1024, cell.name
            assert 30 <= needs.minutes(cell) < 24 * 60, cell.name
    heavy = next(c for c in cells(paper, "erase") if c.where["method"] == "esd")
    light = cells(paper, "prompts")[0]
    assert Needs(paper).memory_mb(heavy) > 3 * Needs(paper).memory_mb(light)
