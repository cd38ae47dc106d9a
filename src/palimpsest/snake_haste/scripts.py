"""The job script: for each job Snakemake starts an interpreter, which loads Snakemake to read what it is given and then asks the server
that forks jobs (`palimpsest.forkserver`). Where that server runs, the run asks it itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from palimpsest import forkserver
from palimpsest.snake_haste.seam import replace

SCRIPT = "workflow/scripts/cell.py"
# What Snakemake sets for whatever a job starts, to its number of threads.
THREADS = (
    "OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS",
)  # fmt: skip


def hasten() -> None:
    from snakemake.script import PythonScript

    replace(PythonScript, "evaluate", _asked_by_the_run)


def _asked_by_the_run(evaluate: Callable[..., None]) -> Callable[..., None]:
    def asked(self: Any, edit: bool = False) -> None:
        status = (
            None if edit or not plainly_ours(self) else forkserver.served(self.params.cell, *_place(self))
        )
        if status is None:
            evaluate(self, edit)
        elif status:
            how = f"was killed by signal {-status}" if status < 0 else "failed"
            print(f"the job {how}; see {self.log[0]}", file=sys.stderr, flush=True)
            raise subprocess.CalledProcessError(1, SCRIPT)

    return asked


def plainly_ours(script: Any) -> bool:
    """Whether it is the job script of this project, with nothing around it (environments, containers, benchmarks, a folder of its own)."""
    around = (
        script.container_img,
        script.conda_env,
        script.env_modules,
        script.shadow_dir,
        script.bench_record,
    )
    return script.is_local and Path(script.local_path).as_posix().endswith(SCRIPT) and not any(around)


def _place(script: Any) -> tuple[Path, Mapping[str, str]]:
    """Where the output of the job goes, and its environment, which is that of whatever Snakemake starts."""
    environment = {**os.environ, **dict.fromkeys(THREADS, str(script.threads))}
    folder = script.resources.get("tmpdir")
    return Path(script.log[0]), environment | ({"TMPDIR": str(folder)} if folder else {})
