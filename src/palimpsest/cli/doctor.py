"""`palimpsest doctor`: what would stop a run, or slow it down, found before it starts. Loads no model and no torch."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from palimpsest import environment, params, runlock
from palimpsest.cli.doctor_room import disk, gpu
from palimpsest.cli.doctor_sharing import sharing
from palimpsest.findings import FAIL, GIB, OK, WARN, Check, size

LOCK = "requirements.txt"
RUNNERS = ("snakemake", "dvc", "pydantic", "grimp", "scipy", "matplotlib")
FOLDERS = ("data", "models", "reports")
MEMORY = 6 * GIB


def examine(settings: Path, overlays: Sequence[Path]) -> list[Check]:
    """All checks, for the project in the current folder and one experiment."""
    root = Path(".")
    everywhere: list[Callable[[], Iterator[Check]]] = [
        python,
        lambda: libraries(root / LOCK),
        memory,
        lambda: leftovers(root),
        lambda: lock(root),
        lambda: failures(root),
        lambda: sharing(root),
    ]
    checks = [check for look in everywhere for check in look()]
    return [*checks, *experiment(settings, overlays, root)]


def python() -> Iterator[Check]:
    """Which Python runs this; one that is too old could not have been installed into."""
    yield Check(OK, "python", platform.python_version())


def locked(path: Path) -> dict[str, str]:
    """Versions in a lock that hold for this Python and system, by normalised name."""
    from packaging.requirements import Requirement

    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match("[A-Za-z0-9]", line):
            requirement = Requirement(line.removesuffix("\\").strip())
            if requirement.marker is None or requirement.marker.evaluate():
                found[requirement.name.lower()] = next(iter(requirement.specifier)).version
    return found


def libraries(path: Path) -> Iterator[Check]:
    """Whether the libraries that decide results, and those that run the workflow, are the locked versions."""
    if not path.is_file():
        yield Check(WARN, "libraries", f"no {path.name} to compare with", "run this in the project folder")
        return
    wanted = locked(path)
    other, missing = [], []
    for name in (*environment.LIBRARIES, *RUNNERS):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if name in wanted and version.partition("+")[0] != wanted[name]:
            other.append(f"{name} {version} (locked: {wanted[name]})")
    if missing:
        yield Check(FAIL, "libraries", f"not installed: {', '.join(missing)}", "make setup")
    if other:
        yield Check(
            WARN,
            "libraries",
            f"{', '.join(other)}; results may differ in their last digits",
            "rm -rf .venv && make setup",
        )
    if not missing and not other:
        yield Check(
            OK, "libraries", f"{len(environment.LIBRARIES) + len(RUNNERS)} of the lock checked, all as locked"
        )


def memory() -> Iterator[Check]:
    """Whether memory is enough for the default experiment."""
    import psutil

    free = psutil.virtual_memory().available
    text = f"{free / GIB:.1f} GiB available, {os.cpu_count()} core(s)"
    if free >= MEMORY:
        yield Check(OK, "memory", text)
    else:
        yield Check(
            WARN,
            "memory",
            f"{text}; a run may need {MEMORY / GIB:.0f}",
            "close other programs, or run `snakemake --cores 1`",
        )


def leftovers(root: Path) -> Iterator[Check]:
    """Half-written files whose writer is gone."""
    parts = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.part"))]
    dead = sorted(runlock.leftovers(root))
    if not dead:
        yield Check(
            OK,
            "leftovers",
            "no half-written files" if not parts else f"{len(parts)} file(s) are being written now",
        )
        return
    amount = sum(path.stat().st_size for path in dead if path.exists())
    names = ", ".join(str(path) for path in dead[:3]) + (", ..." if len(dead) > 3 else "")
    yield Check(
        WARN,
        "leftovers",
        f"{len(dead)} half-written file(s), {size(amount)}: {names}",
        "the next run removes them",
    )


def lock(root: Path) -> Iterator[Check]:
    """Whether another run is alive, or a killed one left its lock behind."""
    running = runlock.holder(root)
    if running:
        remedy = "wait for it, or stop it with Ctrl-C and go on with `snakemake`"
        yield Check(FAIL, "lock", f"a run is under way: {running}", remedy)
    elif runlock.left_behind(root):
        yield Check(WARN, "lock", "left behind by a run that was killed", "the next run removes it")
    else:
        yield Check(OK, "lock", "free")


def failures(root: Path) -> Iterator[Check]:
    """Cells that failed in the last run; the same command tries them again."""
    records = sorted((root / ".palimpsest" / "failed").glob("*.json"))
    for path in records[:5]:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            what = f"{record['step']} {'/'.join(record['where'].values())}: {record['reason']}"
        except (ValueError, KeyError) as error:
            what = f"{path} cannot be read ({error})"
        yield Check(WARN, "failed cell", what[:300], "snakemake tries it again; logs/ has the whole message")
    if len(records) > 5:
        yield Check(WARN, "failed cell", f"and {len(records) - 5} more in {path.parent}")


def experiment(settings: Path, overlays: Sequence[Path], root: Path) -> Iterator[Check]:
    """Settings, prompt files and weights of the experiment, and whether what it will do fits this machine."""
    from palimpsest.plan.build import build
    from palimpsest.prompts.inventory import check_files
    from palimpsest.weights import check_masks, check_quality, check_weights

    try:
        found = params.load(settings, *overlays)
    except params.BadSettings as error:
        yield Check(FAIL, "settings", str(error), "correct them, then `palimpsest validate`")
        return
    yield Check(
        OK,
        "settings",
        f"experiment {found.experiment}, {len(found.themes)} themes, {len(found.suites)} suites",
    )
    try:
        made = build(found, root)
        runs = made.applicable()
    except params.BadSettings as error:
        yield Check(FAIL, "settings", str(error), "correct them, then `palimpsest validate`")
        made, runs = None, []
    missing = (("prompts", check_files(found, root)), ("weights", check_weights(found, root, runs)))
    for name, problems in missing:
        for problem in problems:
            yield Check(FAIL, name, problem)
        if not problems:
            yield Check(OK, name, "all files are there")
    if made is None:
        return
    if any(cell.step == "masks" for cell in made.needed()):
        for problem in check_masks(found, root):
            yield Check(FAIL, "masks", problem)
    if any(cell.step in ("quality", "real") for cell in made.needed()):
        for problem in check_quality(found, root):
            yield Check(FAIL, "quality", problem)
    yield from disk(made)
    yield from gpu(made)
    yield from arithmetic(found)


def arithmetic(found: params.Params, cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Check]:
    """Half precision on a processor that has none of it: it works, tens of times slower than float32."""
    halves = [
        f"{name}: {dtype}"
        for name, dtype in (
            ("sampler.dtype", found.sampler.dtype),
            ("training_images.sampler.dtype", found.training_images.sampler.dtype),
            *((f"detectors.{name}.dtype", spec.dtype) for name, spec in found.detectors.items()),
        )
        if dtype != "float32"
    ]
    if not halves or not cpuinfo.is_file() or Path("/dev/nvidia0").exists():
        return
    flags = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    if not flags & {"avx512_bf16", "amx_bf16"}:
        yield Check(
            WARN,
            "arithmetic",
            f"{', '.join(halves)}: this processor has no half-precision arithmetic, which makes it tens of times slower",
            "set dtype: float32 there",
        )
