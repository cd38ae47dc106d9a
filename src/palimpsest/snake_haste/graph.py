"""The graph of jobs: every edge asks again who makes a file and whether that job is known, and every job whether it has temporary files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

from palimpsest.snake_haste.seam import replace

# A part of a path that leads nowhere else, or up.
ODD = re.compile(r"(^|/)\.{0,2}(/|$)")


def hasten() -> None:
    _find_producers_once()
    _pass_by_known_jobs()
    _compare_folders()
    _keep_no_temporary_files()


def _find_producers_once() -> None:
    """Which rules make a file: a score is an input of three jobs."""
    try:
        from snakemake import output_index
    except ImportError:
        return

    def make(match: Callable[..., Any]) -> Callable[..., Any]:
        def once(self: Any, targetfile: str) -> Any:
            known = self.__dict__.setdefault("known_producers", {})
            if targetfile not in known:
                known[targetfile] = match(self, targetfile)
            return known[targetfile]

        return once

    replace(getattr(output_index, "OutputIndex", None), "match_producers", make)


def _pass_by_known_jobs() -> None:
    """The only job that makes a file, where it has been looked through with all it depends on: there is nothing to choose or to add."""
    from snakemake import dag
    from snakemake.logging import logger

    def make(update: Callable[..., Any]) -> Callable[..., Any]:
        async def known(
            self: Any, jobs: Any, file: Any = None, visited: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            if isinstance(jobs, list) and len(jobs) == 1 and not kwargs.get("progress"):
                job = jobs[0]
                looked_through = job in self._dependencies and job not in (visited or ())
                if looked_through and file not in job.input and not logger.isEnabledFor(logging.DEBUG):
                    return job
            return await update(self, jobs, file, visited, *args, **kwargs)

        return known

    replace(getattr(dag, "DAG", None), "update", make)


def apart(paths: Iterable[str]) -> bool:
    """Whether it is plain that no path lies in another: all are relative, without detours, and none is a folder of one of them."""
    known = set(paths)
    folders: set[str] = set()
    for path in known:
        if ODD.search(path):
            return False
        folder = os.path.dirname(path)
        while folder and folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    return known.isdisjoint(folders)


def _compare_folders() -> None:
    """No output may lie in another, for which Snakemake makes and sorts a path object per output."""
    from snakemake import dag

    def make(check: Callable[..., Any]) -> Callable[..., Any]:
        def quick(self: Any) -> None:
            if not apart(str(file) for job in self.jobs for file in job.output):
                check(self)

        return quick

    replace(getattr(dag, "DAG", None), "check_directory_outputs", make)


def _keep_no_temporary_files() -> None:
    """What a finished job allows to remove, where neither it nor what it read from made temporary files."""
    from snakemake import dag

    def make(handle: Callable[..., Any]) -> Callable[..., Any]:
        async def needed(self: Any, job: Any) -> None:
            if (
                job.is_group()
                or job.temp_output
                or any(other.temp_output for other in self._dependencies[job])
            ):
                await handle(self, job)

        return needed

    replace(getattr(dag, "DAG", None), "handle_temp", make)
