"""What a job knows and how it leaves its artifact: the driver between Snakemake and the step functions.

A step gets the arguments of its recipe and nothing else, so what is not in the key cannot be read. The artifact is written only if
the code on disk is still the code of the plan and nothing was imported that the plan did not count.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest import closure, environment, seal, store

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    from torch import Tensor

FAILED = Path(".palimpsest/failed")


class CodeChanged(RuntimeError):
    """The code is not what the plan of this run was made from."""


@dataclass(frozen=True)
class Input:
    """An upstream artifact: the step that made it (or the name of what lies beside it), its place and its file."""

    step: str
    where: Mapping[str, str]
    path: Path


@dataclass
class Job:
    """One cell being made. hints: settings that change no result (batch size), so they are not in the key.

    beside: where that goes which the step writes beside its artifact, by name.

    code: digest of what the code of `modules` means, sources: of its bytes (see palimpsest.closure).
    """

    step: str
    where: Mapping[str, str]
    key: str
    args: Mapping[str, Any]
    inputs: Sequence[Input]
    output: Path
    roots: Sequence[str]
    code: str
    modules: Sequence[str]
    sources: str
    recipe: Mapping[str, Any]
    hints: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Path] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Job:
        """A job from the plain dictionary that Snakemake passes."""
        inputs = [Input(i["step"], i["where"], Path(i["path"])) for i in spec["inputs"]]
        beside = {name: Path(path) for name, path in spec.get("beside", {}).items()}
        return cls(**{**spec, "inputs": inputs, "output": Path(spec["output"]), "beside": beside})

    def of(self, step: str, **where: str) -> list[Input]:
        """The inputs made by one step, narrowed by parts of their place."""
        return [
            i for i in self.inputs if i.step == step and all(i.where.get(k) == v for k, v in where.items())
        ]

    def one(self, step: str, **where: str) -> Input:
        """The only input of that kind. Raises LookupError when there is none or several."""
        found = self.of(step, **where)
        if len(found) != 1:
            raise LookupError(f"{self.output}: expected one {step} input with {where}, found {len(found)}")
        return found[0]

    def check(self) -> None:
        """Raise CodeChanged when the code on disk or the modules loaded are not those of the plan."""
        same = closure.bytes_digest(self.modules, fresh=True) == self.sources
        if not same and closure.digest(self.roots, fresh=True) != self.code:
            raise CodeChanged(
                f"{self.output}: the code changed since the plan of this run was made; nothing was stored. Run `snakemake` again."
            )
        extra = [m for m in closure.unexpected(self.modules, list(sys.modules)) if m not in DRIVER]
        if extra:
            raise CodeChanged(
                f"{self.output}: {extra} were imported at run time but are not reachable from {list(self.roots)} by plain imports, "
                "so changes in them would go unnoticed. Import them by name, or add them to the roots of this step in palimpsest/plan.py."
            )

    def meta(self, extra: Mapping[str, Any] | None = None, measured: bool = True) -> dict[str, Any]:
        """What is written into the artifact: its recipe, the environment, time and memory, and what the step adds.

        Without `measured` nothing of it differs between two runs of the recipe.
        """
        made = {
            "environment": environment.describe(),
            "seconds": round(time.perf_counter() - self.started, 3),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }
        return {
            "step": self.step,
            "where": dict(self.where),
            "key": self.key,
            "recipe": dict(self.recipe),
            **(made if measured else {}),
            **dict(extra or {}),
            seal.NAME: seal.OPEN,
        }

    def write_parquet(
        self,
        table: pa.Table | pl.DataFrame,
        extra: Mapping[str, Any] | None = None,
        image_columns: Sequence[str] = (),
        measured: bool = True,
    ) -> None:
        self.check()
        store.write_parquet(table, self.output, self.meta(extra, measured), image_columns)

    def write_beside(self, name: str, table: pa.Table | pl.DataFrame) -> None:
        """Write a table of measurements. To be called before the artifact is written, so that none is ever without it."""
        self.check()
        store.write_parquet(table, self.beside[name], self.meta())

    def write_tensors(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any] | None = None) -> None:
        self.check()
        store.write_tensors(tensors, self.output, self.meta(extra))

    def write_json(self, value: Mapping[str, Any]) -> None:
        self.check()
        store.write_json({**value, "meta": self.meta()}, self.output)


# Loaded by the driver itself in every job; their code is in no recipe because it decides no result.
DRIVER = frozenset(
    {
        "palimpsest",
        "palimpsest.job",
        "palimpsest.closure",
        "palimpsest.environment",
        "palimpsest.seal",
        "palimpsest.store",
        "palimpsest.devices",
        "palimpsest.forkserver",
    }
)


def failure_path(key: str) -> Path:
    """Where the record of a failed cell lies."""
    return FAILED / f"{key}.json"


def run(spec: Mapping[str, Any]) -> None:
    """Make one cell. A failure leaves no artifact, only a record for the report, and is raised again."""
    threads = str(spec.get("hints", {}).get("threads", 1))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    job = Job.from_dict(spec)
    try:
        job.check()
        importlib.import_module(f"palimpsest.steps.{job.step}").run(job)
    except BaseException as error:
        if isinstance(error, Exception):
            _record_failure(job, error)
        raise
    failure_path(job.key).unlink(missing_ok=True)


def run_logged(spec: Mapping[str, Any], log: Path) -> None:
    """`run` with everything that is printed, tracebacks included, going to a file."""
    with open(log, "a", encoding="utf-8") as output, redirect_stdout(output), redirect_stderr(output):
        try:
            run(spec)
        except BaseException:
            traceback.print_exc()
            raise


def _record_failure(job: Job, error: Exception) -> None:
    status = "oom" if isinstance(error, MemoryError) or "out of memory" in str(error).lower() else "error"
    record = {
        "step": job.step,
        "where": dict(job.where),
        "key": job.key,
        "status": status,
        "reason": f"{type(error).__name__}: {error}",
        "traceback": traceback.format_exc().splitlines()[-12:],
    }
    try:
        store.write_json(record, failure_path(job.key))
    except OSError as also:  # a full disk must not hide the first error
        print(f"the failure of {job.output} could not be recorded: {also}", file=sys.stderr)
