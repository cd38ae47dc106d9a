"""The seam between Snakemake and the plan: everything the Snakefile and the rules call. Nothing else knows Snakemake."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palimpsest import devices, forkserver, runlock
from palimpsest import params as settings
from palimpsest.cells import BESIDE, PATTERNS, Cell
from palimpsest.job import failure_path
from palimpsest.needs import LIGHT, Needs
from palimpsest.partial import partial as partial_report
from palimpsest.plan.build import Plan, build
from palimpsest.snake_haste import collect_again, declared, hasten

__all__ = [
    "PATTERNS",
    "begin",
    "cell",
    "end",
    "inputs",
    "log",
    "memory_mb",
    "minutes",
    "outputs",
    "partial",
    "plan",
]

DEFAULT = "params.yaml"
RUNNING: list[Any] = []
WORKFLOWS: list[Any] = []
# Bytes of free disk with which no run ends well.
LOW = 8 << 20
# Commands that only look; they may do so while a run is under way.
LOOKING = re.compile(
    r"--(summary|detailed-summary|report|lint|print-compilation|nolock|dag|rulegraph|filegraph|d3dag|list.*|lt|lc|lu)|-[SDl]"
)


def plan(workflow: Any) -> Plan:
    """The plan of params.yaml and the overlays given with `--configfile`. Stops with every problem in the settings at once."""
    from snakemake.exceptions import WorkflowError

    WORKFLOWS[:] = [workflow]
    config = workflow.config_settings
    if config.config:
        raise WorkflowError(
            f"--config {dict(config.config)}: settings come from files only, so that a result can be repeated. "
            "Put them in a YAML file and give it with --configfile."
        )
    overlays = [str(path) for path in config.configfiles or []]
    lock(workflow)
    try:
        made = build(settings.load(DEFAULT, *overlays))
    except settings.BadSettings as error:
        raise WorkflowError(str(error)) from None
    link_latest(made)
    hasten()
    return made


def lock(workflow: Any) -> None:
    """Keep other runs out of this folder until the process ends; jobs on other machines and commands that only look need no lock."""
    from snakemake.exceptions import WorkflowError

    looking = any(LOOKING.fullmatch(word.partition("=")[0]) for word in sys.argv)
    if not workflow.is_main_process or workflow.output_settings.dryrun or looking:
        return
    try:
        for cleared in runlock.take(Path(".")):
            print(f"Removed {cleared}.", file=sys.stderr, flush=True)
    except runlock.Busy as busy:
        raise WorkflowError(str(busy)) from None


def _at(made: Plan, step: str, wildcards: Any) -> Cell:
    path = PATTERNS[step].format(**dict(wildcards.items()))
    try:
        return made.cells[path]
    except KeyError:
        raise LookupError(
            f"{path} is no artifact of this experiment: its key belongs to other settings or other code. "
            "`palimpsest explain` names the artifacts of the current plan."
        ) from None


def partial(made: Plan) -> Callable[[Any], Any]:
    """An input function: the report of what is there, with what is missing listed. Asked for only by `snakemake partial`."""
    from snakemake.io import ancient

    return lambda _: ancient(partial_report(made).path)


def inputs(made: Plan, step: str) -> Callable[[Any], list[Any]]:
    """An input function: the upstream artifacts of the cell, marked ancient because names, not times, decide.

    A cell that is there needs nothing: otherwise Snakemake would make it again as soon as one of its inputs is missing and is made for
    another cell, as after a pull of the scores alone.
    """
    from snakemake.io import ancient

    def find(wildcards: Any) -> list[Any]:
        wanted, forced = _at(made, step, wildcards), _forced()
        if wanted.made(made.root) and not forced:
            return []
        upstream = wanted.inputs if forced or _stored_elsewhere() else made.asked_for(wanted)
        return [ancient(path) for c in upstream for path in c.files.values()]

    return declared(find)


def _stored_elsewhere() -> bool:
    """Whether a job's files are fetched for it one by one, so that each of them has to be named."""
    settings = getattr(WORKFLOWS[-1], "storage_settings", None) if WORKFLOWS else None
    return getattr(settings, "default_storage_provider", None) is not None


def _forced() -> bool:
    """Whether the user asked for artifacts to be made again although they are there (--forceall, --forcerun)."""
    asked = WORKFLOWS[-1].dag_settings if WORKFLOWS else None
    return asked is not None and bool(asked.forceall or asked.forcerun or asked.forcetargets)


def cell(made: Plan, step: str) -> Callable[..., dict[str, Any]]:
    """A params function: the plain description of the cell for the job script. Files are where Snakemake has them, which is elsewhere than
    the plan says when they are kept in a remote storage."""

    def find(wildcards: Any, input: Any, output: Any, threads: int) -> dict[str, Any]:
        spec = _at(made, step, wildcards).spec()
        sources = spec["inputs"]
        if _stored_elsewhere() and input:
            sources = [{**known, "path": str(path)} for known, path in zip(sources, input, strict=True)]
        hints = {**spec["hints"], "threads": threads}
        beside = dict(zip(spec["beside"], map(str, output[1:]), strict=True))
        return {**spec, "inputs": sources, "output": str(output[0]), "beside": beside, "hints": hints}

    return declared(find)


def outputs(step: str) -> list[str]:
    """The artifact of a step that writes something beside it, and that; missing either, Snakemake makes both."""
    return [PATTERNS[step], *BESIDE[step].values()]


def memory_mb(made: Plan, step: str) -> Callable[..., int]:
    """A resource function: the main memory of a job in MiB; more each time the job is tried again (`--retries`)."""
    needs = Needs(made)
    return declared(lambda wildcards, attempt: needs.memory_mb(_at(made, step, wildcards)) * attempt)


def minutes(made: Plan, step: str) -> Callable[..., int]:
    """A resource function: the time limit of a job; more each time the job is tried again."""
    needs = Needs(made)
    return declared(lambda wildcards, attempt: needs.minutes(_at(made, step, wildcards)) * attempt)


def log(step: str) -> str:
    """Where the output of a job goes."""
    return "logs/" + PATTERNS[step].rsplit(".", 1)[0].replace("/index", "") + ".log"


def preflight(made: Plan) -> None:
    """Stop before any work when files or weights of a cell that will run are missing, saying where each belongs."""
    from snakemake.exceptions import WorkflowError

    from palimpsest.prompts.inventory import check_files
    from palimpsest.weights import check_masks, check_quality, check_weights

    cells = made.needed()
    needed = {c.step for c in cells}
    methods = {c.where["method"] for c in cells if c.step in ("erase", "generate")}
    problems = check_files(made.params, made.root) if "prompts" in needed else []
    problems += (
        check_weights(made.params, made.root, [run for run in made.runs if run.method in methods])
        if needed - set(LIGHT)
        else []
    )
    problems += check_masks(made.params, made.root) if "masks" in needed else []
    problems += check_quality(made.params, made.root) if needed & {"quality", "real"} else []
    if problems:
        lines = "\n".join(f"  {n}. {problem}" for n, problem in enumerate(problems, 1))
        raise WorkflowError(f"Nothing was run: {len(problems)} thing(s) are missing.\n{lines}")


def begin(made: Plan, workflow: Any) -> None:
    """What happens when a run starts: clear away what a killed one left, look for what is missing, start the server that forks jobs."""
    removed = runlock.clear_leftovers(made.root)
    if removed:
        print(
            f"Removed {len(removed)} half-written file(s) of processes that are gone.",
            file=sys.stderr,
            flush=True,
        )
    atexit.register(tell_when_full, made.root)
    collect_again()
    targets = set(workflow.dag_settings.targets or ())
    if targets and targets <= {"world"}:
        return  # it makes the weights that the check below asks for
    preflight(made)
    # freed memory is kept: mapping every large tensor anew costs jobs up to half of their time (read when a process starts)
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str((1 << 31) - 1))
    os.environ.pop(forkserver.RUN, None)
    if not workflow.local_exec:
        # a scheduler's jobs have memory and GPUs of their own, often on another machine
        os.environ[forkserver.SETTING] = "0"
        return
    unthrottle(workflow)
    one_job_per_gpu(workflow)
    os.environ[forkserver.RUN] = str(os.getpid())
    if made.needed():
        RUNNING.append(forkserver.start())


def unthrottle(workflow: Any) -> None:
    """Lift Snakemake's limit on job starts per second, which protects schedulers and has nothing to protect on one machine.

    While it is on, every pass of the scheduler arms a timer that causes the next pass a second later, and every finished job adds such
    a chain: after 400 jobs they took a quarter of a core (Snakemake 9.27).
    """
    scheduler: Any = getattr(workflow, "scheduler", None)
    if getattr(scheduler, "job_rate_limiter", None) is not None:
        scheduler.job_rate_limiter = None


def one_job_per_gpu(workflow: Any) -> int | None:
    """Let a local run have as many jobs with a GPU at a time as there are GPUs (palimpsest.devices gives each its own). None where there is
    nothing to limit: without a GPU, and where the user gave a number (`--resources gpu=8` puts two jobs on each of four).
    """
    known = len(devices.visible())
    if not known or "gpu" in workflow.global_resources:
        return None
    workflow.register_resource("gpu", known)
    scheduler: Any = getattr(workflow, "scheduler", None)
    if scheduler is not None:  # it has copied the limits by now
        scheduler.global_resources["gpu"] = scheduler.resources["gpu"] = known
    return known


def tell_when_full(root: Path) -> None:
    """Say at the end of a run that the disk is full: whatever broke for that, Snakemake's own records included, says so less plainly."""
    usage = shutil.disk_usage(root)
    if usage.free < LOW:
        print(
            f"The disk is full: {usage.free / 2**20:.1f} of {usage.total / 2**20:.0f} MiB are free on the disk of {root.resolve()}. "
            "Free some space, then run the same command again: what is done stays done.",
            file=sys.stderr,
            flush=True,
        )


def end(made: Plan, failed: bool) -> None:
    """What happens when a run ends."""
    while RUNNING:
        forkserver.stop(RUNNING.pop())
    if failed:
        explain_failures(made)
    else:
        link_latest(made)


def link_latest(made: Plan) -> None:
    """Let `reports/<experiment>` lead to the report of this plan: the whole one, or the partial one that was just made."""
    report = made.root / made.final.path
    if not report.exists():
        report = made.root / PATTERNS["report"].format(**made.final.where, key=made.tables.latest_report.key)
    if not report.exists():
        return
    link = made.root / "reports" / made.params.experiment
    if link.is_symlink() and os.readlink(link) == report.parent.name:
        return
    part = link.with_name(f"{link.name}.{os.getpid()}.part")
    part.symlink_to(report.parent.name, target_is_directory=True)
    os.replace(part, link)


def explain_failures(made: Plan) -> None:
    """Print what failed and what to do about it."""
    for made_cell in made.cells.values():
        record = failure_path(made_cell.key)
        if record.exists():
            reason = json.loads(record.read_text(encoding="utf-8"))["reason"]
            print(f"failed: {made_cell.name}\n  {reason}", file=sys.stderr)
    print("Run the same command again to go on: what is done stays done.", file=sys.stderr, flush=True)
