"""Figures that two processes draw."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from palimpsest.reports import drawing, figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]


def here(process: int) -> Figure:
    """A figure that only one process can draw."""
    if os.getpid() != process:
        raise ValueError("this process cannot draw")
    return map_of(0.5)


def map_of(value: float) -> Figure:
    return figures.heatmap({"method": {"theme": value}}, ["theme"], "percent")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process finds this module."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def wait_for_claim(work: drawing.Begun) -> None:
    """Until the other process has begun with a figure."""
    for _ in range(600):
        if any(work.claims.iterdir()):
            return
        time.sleep(0.1)
    raise TimeoutError("the other process took no figure in a minute")


def test_every_figure_is_drawn_once_and_alike_by_either_process(tmp_path: Path) -> None:
    early = [drawing.Task(f"map_{n}", map_of, [n / 10], "") for n in range(drawing.FEW + 1)]
    late = drawing.Task("late", map_of, [0.9], "")
    (tmp_path / "both").mkdir()
    (tmp_path / "one").mkdir()
    with drawing.begun(early, tmp_path / "both") as work:
        wait_for_claim(work)
        found = work.finished([*early, late])
    alone = {
        task.name: figures.save(task.name, partial(task.draw, *task.args), tmp_path / "one")
        for task in [*early, late]
    }
    assert found == alone and list(found) == list(alone)
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "both" / file.name).read_bytes() == file.read_bytes(), file.name


def test_what_the_other_process_cannot_draw_is_said(tmp_path: Path) -> None:
    tasks = [drawing.Task(f"map_{n}", here, [os.getpid()], "") for n in range(drawing.FEW + 1)]
    with drawing.begun(tasks, tmp_path) as work:
        wait_for_claim(work)
        with pytest.raises(RuntimeError, match=r"(?s)drawing \['map_0'\].*this process cannot draw"):
            work.finished(tasks)


def test_a_report_that_fails_leaves_no_process(tmp_path: Path) -> None:
    tasks = [drawing.Task(f"map_{n}", map_of, [n / 10], "") for n in range(drawing.FEW + 1)]
    with pytest.raises(KeyError), drawing.begun(tasks, tmp_path) as work:
        raise KeyError
    assert work.helper is not None and work.helper.returncode is not None and not work.claims.exists()
