"""`dvc metrics show` and `dvc plots show` print the numbers of the report, no more and no fewer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_inputs
import pytest

from palimpsest import published, store
from palimpsest.reports import page, select
from palimpsest.reports.conclusions import own
from palimpsest.reports.inputs import ReportInputs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def numbers(inputs: ReportInputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], Path]:
    """The headline numbers of a report with quality, and the folder where they were published."""
    whole = replace(inputs, quality=fake_inputs.measured(inputs.cells))
    rows = select.rows_of(whole)
    found = page.metrics(rows, whole.params, own.study_of(whole, rows))
    root = tmp_path_factory.mktemp("published")
    store.write_json(found, root / "report" / "metrics.json")
    published.publish(root / "report", "test_data", root)
    return found, root


def test_headline_numbers_are_those_of_the_tables(
    numbers: tuple[dict[str, float], Path], inputs: ReportInputs
) -> None:
    found, _ = numbers
    kinds = {name.split(".")[0] for name in found}
    assert kinds == {"ep", "grd", "benign", "base_unsafe", "rows"}
    [grd] = [value for name, value in found.items() if name.startswith("grd.")]
    assert grd == 0.25  # what the made-up table of quality holds
    fid = {value for name, value in found.items() if name.endswith(".coco.fid_micro")}
    assert fid == {3.0}
    row = next(
        r
        for r in select.ep_rows(select.rows_of(inputs), inputs.params)
        if r["method"] == "esd" and r["ep"] is not None
    )
    name = f"ep.esd.{row['preset']}.{row['theme']}.{row['keyword_set']}.nsfw.{row['judged_theme']}"
    assert found[name] == pytest.approx(row["ep"], abs=1e-6)


def dvc(root: Path, *command: str) -> Any:
    """What a command of DVC prints as JSON."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *command, "--json"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_dvc_shows_the_same_numbers(numbers: tuple[dict[str, float], Path]) -> None:
    found, root = numbers
    shutil.copytree(
        ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local")
    )
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    (root / "dvc.yaml").write_text(
        text[text.index("# Written by") :], encoding="utf-8"
    )  # metrics and plots without the stage
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    shown = dvc(root, "metrics", "show")[""]["data"]
    flat = {named(name, path): value for path, file in shown.items() for name, value in file["data"].items()}
    assert flat == {name: value for name, value in found.items() if not name.startswith("rows.")}
    points = dvc(root, "plots", "show")["data"]
    drawn = {
        named(f"ep.{p['cell']}", path): float(p["ep"]) for path, file in points.items() for p in rows_of(file)
    }
    assert drawn == {name: value for name, value in found.items() if name.startswith("ep.")}


def named(name: str, path: str) -> str:
    """The name in the report: that in the file, with the method that the file is named after."""
    kind, rest = name.split(".", 1)
    return name if kind == "base_unsafe" else f"{kind}.{Path(path).stem}.{rest}"


def rows_of(file: Any) -> list[dict[str, Any]]:
    """The points of a plot, as DVC gives them to the drawing."""
    return [row for plot in file for row in plot["content"]["data"]["values"]]
