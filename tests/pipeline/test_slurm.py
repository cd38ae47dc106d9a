"""The same experiment through a real Slurm: the same keys, the same tables; GPUs only for those who need one."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from palimpsest import forkserver, store
from tests.pipeline import slurm
from tests.pipeline.project import OVERLAY, ROOT, Project

pytestmark = pytest.mark.pipeline_slow
OBSTACLE = slurm.obstacle()
HASTY = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1")
GPU_RULES = {
    "suppression",
    "images",
    "masks",
    "erase",
    "generate",
    "score",
    "gates",
    "renders",
    "quality",
    "real",
}


def profile(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))


def rules_with_a_gpu() -> set[str]:
    """The rules that ask for a GPU, as they are written."""
    found = set()
    for path in (ROOT / "rules").glob("*.smk"):
        for rule in re.split(r"^rule ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            if "gpu=1" in rule:
                found.add(rule.partition(":")[0])
    return found


def test_the_profile_without_gpus_takes_them_from_every_rule_and_is_otherwise_the_same() -> None:
    without = profile("slurm-cpu")
    assert without.pop("set-resources") == {rule: {"gpu": 0} for rule in rules_with_a_gpu()}
    assert without == profile("slurm")
    assert rules_with_a_gpu() == GPU_RULES


def submitted() -> dict[str, str]:
    """What every job of this Slurm asked of the node: rule -> its generic resources, from the controller."""
    shown = subprocess.run(
        ["scontrol", "show", "job", "--details"], capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for block in shown.split("\n\n"):
        rule = re.search(r"Comment=(?:rule_)?(\w+?)(?:_wildcards|$|\s)", block)
        asked = re.search(r"TresPerJob=(\S+)", block)
        if rule:
            found[rule[1]] = asked[1] if asked else ""
    return found


def contents(project: Project) -> dict[str, Any]:
    """What every artifact says, without how long it took to make: images and tensors byte for byte, the final table as a file."""
    found: dict[str, Any] = {}
    for name in project.artifacts():
        path = project.folder / name
        if name.startswith("data/tables/"):
            if "/costs." not in name:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".parquet":
            table = pl.read_parquet(path)
            found[name] = hashlib.sha256(table.drop("seconds", strict=False).serialize()).hexdigest()
        elif path.suffix == ".safetensors":
            tensors, _ = store.read_tensors(path)
            found[name] = {
                key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in tensors.items()
            }
    return found


def tables(project: Project) -> dict[str, bytes]:
    """The tables of the report as text files, without those that say what a cell cost."""
    folder = project.folder / "reports/scratch/tables"
    return {
        path.name: path.read_bytes() for path in folder.glob("*.csv") if path.stem not in ("cost", "cells")
    }


@contextmanager
def trap(folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """A listening socket where a fork server might be, and who came."""
    address, visitors = str(folder / "trap"), []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        yield address, visitors
        listener.settimeout(0.5)
        with suppress(TimeoutError):
            visitors.append(listener.accept())


@pytest.mark.slow
@pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)
def test_a_run_through_slurm_gives_the_keys_and_tables_of_a_local_run(tmp_path: Path) -> None:
    for name in ("local", "slurm"):
        (tmp_path / name).mkdir()
    suites = {"nsfw": OVERLAY["suites"]["nsfw"]}
    here, there = (Project(tmp_path / name, suites=suites) for name in ("local", "slurm"))
    done = here.snakemake()
    assert done.returncode == 0, done.stdout
    with slurm.one_node(gpus=2), trap(tmp_path) as (address, visitors):
        there.environment[forkserver.SETTING] = address
        done = there.snakemake("--profile", "profiles/slurm", *HASTY)
        assert done.returncode == 0, done.stdout
        asked = submitted()
    assert visitors == [], "a job of the scheduler asked a fork server of the machine that submitted it"
    assert asked.keys() >= {"prompts", "erase", "generate", "score", "compare", "aggregate", "report"}
    assert {
        rule for rule, resources in asked.items() if resources == "gres:gpu:1"
    } == GPU_RULES & asked.keys()
    assert there.artifacts() == here.artifacts()
    assert contents(there) == contents(here) and len(contents(here)) > 6
    assert tables(there) == tables(here) and len(tables(here)) > 4
    assert "Nothing to be done" in there.snakemake("-n").stdout
