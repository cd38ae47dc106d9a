"""Draws figures, half of them in a second process where there is a second processor: drawing is most of the time of a report."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.reports import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 4  # figures that are drawn sooner than a second process starts
CODE = "from palimpsest.reports import drawing; drawing.main()"


@dataclass(frozen=True)
class Task:
    """A figure to draw. draw: a function of a module, called with arguments that are plain data."""

    name: str
    draw: Callable[..., Figure]
    args: Sequence[Any]
    caption: str


def drawn(tasks: Sequence[Task], folder: Path) -> dict[str, str]:
    """{name: SVG for the page}; the files are written into `folder`. Raises RuntimeError with what a failed second process said."""
    if len(tasks) <= FEW or len(os.sched_getaffinity(0)) < 2:
        return {task.name: _save(task, folder) for task in tasks}
    own, others = tasks[::2], tasks[1::2]
    with _started(others, folder) as helper:
        found = {task.name: _save(task, folder) for task in own}
        said = helper.communicate()[0]
    if helper.returncode:
        raise RuntimeError(f"drawing {[task.name for task in others]} failed:\n{said}")
    for task in others:
        found[task.name] = figures.inline(
            (folder / f"{task.name}.svg").read_text(encoding="utf-8"), task.name
        )
    return {task.name: found[task.name] for task in tasks}


def _save(task: Task, folder: Path) -> str:
    return figures.save(task.name, partial(task.draw, *task.args), folder)


def _started(tasks: Sequence[Task], folder: Path) -> subprocess.Popen[str]:
    """A process that draws; it gets what to draw through a file without a name, so that nobody has to feed it."""
    import tempfile

    orders = [[task.name, task.draw.__module__, task.draw.__qualname__, list(task.args)] for task in tasks]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        json.dump({"folder": str(folder), "orders": orders}, file, default=lambda value: value.item())
        file.seek(0)
        package = str(Path(__file__).parents[2])
        paths = filter(None, [package, os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, "-c", CODE],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )


def main() -> None:
    """Draw what standard input says."""
    asked = json.load(sys.stdin)
    for name, module, function, args in asked["orders"]:
        draw = getattr(importlib.import_module(module), function)
        figures.save(name, partial(draw, *args), Path(asked["folder"]))
