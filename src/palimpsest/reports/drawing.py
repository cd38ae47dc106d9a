"""Draws figures, in a second process where there is a second processor: drawing is most of the time of a report.

The second process draws from the first figure on while this one is still busy with tables and images; then this one takes figures from
the last on, until none is left. Which of them draws a figure does not change it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
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


@dataclass(frozen=True)
class Begun:
    """A folder of figures into which a second process may have begun to draw."""

    folder: Path
    claims: Path
    helper: subprocess.Popen[str] | None

    def finished(self, tasks: Sequence[Task]) -> dict[str, str]:
        """{name: SVG for the page} of these figures, when all are drawn: those that were begun, and others that nobody knew of then.

        Raises RuntimeError with what a failed second process said.
        """
        found = {
            task.name: figures.save(task.name, partial(task.draw, *task.args), self.folder)
            for task in reversed(tasks)
            if _claimed(self.claims, task.name)
        }
        others = [task.name for task in tasks if task.name not in found]
        if self.helper is not None:
            said = self.helper.communicate()[0]
            if self.helper.returncode:
                raise RuntimeError(f"drawing {others} in a second process failed:\n{said}")
        for name in others:
            found[name] = figures.inline((self.folder / f"{name}.svg").read_text(encoding="utf-8"), name)
        return {task.name: found[task.name] for task in tasks}


@contextmanager
def begun(tasks: Sequence[Task], folder: Path) -> Iterator[Begun]:
    """Begin to draw these figures into `folder`; what is not `finished` when the block ends is given up."""
    with TemporaryDirectory() as place:
        claims = Path(place)
        if len(tasks) <= FEW or len(os.sched_getaffinity(0)) < 2:
            yield Begun(folder, claims, None)
            return
        with _started(tasks, folder, claims) as helper:
            try:
                yield Begun(folder, claims, helper)
            finally:
                helper.kill()


def _claimed(claims: Path, name: str) -> bool:
    """Whether a figure is now the asking process's to draw: of two that ask, one is told so."""
    try:
        (claims / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _started(tasks: Sequence[Task], folder: Path, claims: Path) -> subprocess.Popen[str]:
    """A process that draws; it gets what to draw through a file without a name, so that nobody has to feed it."""
    orders = [[task.name, task.draw.__module__, task.draw.__qualname__, list(task.args)] for task in tasks]
    asked = {"folder": str(folder), "claims": str(claims), "orders": orders}
    with TemporaryFile("w+", encoding="utf-8") as file:
        json.dump(asked, file, default=lambda value: value.item())
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
    """Draw what standard input says and nobody else draws."""
    asked = json.load(sys.stdin)
    for name, module, function, args in asked["orders"]:
        draw = getattr(importlib.import_module(module), function)
        if _claimed(Path(asked["claims"]), name):
            figures.save(name, partial(draw, *args), Path(asked["folder"]))
