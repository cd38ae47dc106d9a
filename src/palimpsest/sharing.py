"""Sharing results through DVC: check every artifact of the plan, track what is new, and leave everything else alone.

Nothing is committed and nothing is pushed here; the command says what to type.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from palimpsest import runlock, verify
from palimpsest import tracked as dvc
from palimpsest.cells import Cell
from palimpsest.plan.build import Plan
from palimpsest.published import publish

PART = re.compile(r"\.part(/|$)")
WRITER = re.compile(r"\.(?:\w+-)?(\d+)\.part(/|$)")
ASIDE = Path(".palimpsest/aside")
KEYED = re.compile(r"[.-][0-9a-f]{16}(\.|/|$)")


class Refused(RuntimeError):
    """Nothing was shared; the message says why and which command helps."""


@dataclass
class State:
    """What is there. present: files of the plan's artifacts by name; tracked: MD5 of what DVC knows; damaged: reason by name;
    remade: whole files that are not, byte for byte, those shared under their names; unpulled: files that DVC knows and that are not here;
    absent: number of artifacts of the plan that are not here."""

    present: list[str] = field(default_factory=list)
    tracked: Mapping[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    remade: list[str] = field(default_factory=list)
    unpulled: list[str] = field(default_factory=list)
    absent: int = 0

    @property
    def new(self) -> list[str]:
        """Files that DVC does not know yet."""
        return [name for name in self.present if name not in self.tracked]


@dataclass
class Done:
    """What sharing did, or would do. added: targets of `dvc add`; strangers: untracked artifacts that no plan names, left alone;
    pruned: files deleted; published: files with headline numbers that changed."""

    state: State
    added: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)


def at_work(root: Path) -> None:
    """Raise Refused while a run holds the folder, has been killed in it, or a process is still writing an artifact."""
    running = runlock.holder(root)
    if running:
        raise Refused(f"A run is under way, so artifacts may still change: {running}. Wait until it ends.")
    if runlock.left_behind(root):
        raise Refused(
            "A run holds Snakemake's lock, on another machine, or was killed. Wait until it ends; if it was killed, "
            "`snakemake` goes on where it stopped. Then share again."
        )
    writing = [path for path in artifacts(root, parts=True) if _written_now(path)]
    if writing:
        raise Refused(f"{writing[0]} is being written by a process that is alive; wait until it ends.")


def _written_now(name: str) -> bool:
    found = WRITER.search(name)
    if found is None:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def artifacts(root: Path, parts: bool = False) -> Iterator[str]:
    """Names of all artifacts that lie in the project, of whatever plan; with `parts`, of half-written ones instead.

    A name holds a key, so a reader's own file beside the artifacts is none.
    """
    for place in (*dvc.PLACES, dvc.SHARED):
        for path in sorted((root / place).rglob("*")):
            name = path.relative_to(root).as_posix()
            half = bool(PART.search(name))
            if half == parts and KEYED.search(name) and path.is_file() and path.suffix != ".dvc":
                yield name


def inspect(plan: Plan) -> State:
    """Read every artifact of the plan that is here, completely."""
    root = plan.root
    state = State(tracked=dvc.tracked(root))
    state.unpulled = [name for name in state.tracked if not (root / name).exists()]

    def look(cell: Cell) -> tuple[list[Path], list[Path], verify.Damaged | None]:
        files = verify.files_of(cell, root)
        try:
            return files, verify.check(cell, root, state.tracked) if files else [], None
        except verify.Damaged as damage:
            return files, [], damage

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter's lock
        results = list(pool.map(look, plan.cells.values()))
    for files, remade, damage in results:
        state.present += [path.relative_to(root).as_posix() for path in files]
        state.remade += [path.relative_to(root).as_posix() for path in remade]
        state.absent += not files
        if damage is not None:
            state.damaged[damage.path.relative_to(root).as_posix()] = str(damage)
    return state


def share(plan: Plan, keep: Callable[[], Iterable[Plan]], prune: bool = False, dry_run: bool = False) -> Done:
    """Check, then track what is new. keep: the plans whose artifacts `prune` must spare. Raises Refused, DvcFailed."""
    root = plan.root
    at_work(root)
    _set_back(root)
    state = inspect(plan)
    if state.damaged:
        raise Refused(_damage(state))
    named = {path for cell in plan.cells.values() for path in cell.files.values()}
    if prune:
        named |= {path for other in keep() for cell in other.cells.values() for path in cell.files.values()}
    unnamed = [name for name in artifacts(root) if not _is_named(name, named)]
    done = Done(state, strangers=[name for name in unnamed if name not in state.tracked])
    if prune:
        _prune(root, state, unnamed, done, dry_run)
    done.added = targets(state, done.pruned)
    if dry_run:
        return done
    with _aside(root, done.strangers):
        dvc.add(root, done.added)
    report = root / plan.final.path
    if report.exists():
        done.published = publish(report.parent, plan.params.experiment, root)
    return done


def _is_named(name: str, named: set[str]) -> bool:
    """Whether a plan asks for a file: by its path, or by that of the page in whose folder it lies."""
    top = "/".join(name.split("/")[:2])
    return name in named or (name.startswith("reports/") and f"{top}/index.html" in named)


def targets(state: State, pruned: Iterable[str] = ()) -> list[str]:
    """What to give to `dvc add`: a folder as a whole, or the new files of one that is only partly here.

    Adding a partly pulled folder as a whole would make DVC forget the files that were not pulled; adding one with files that somebody
    made again would replace the shared ones.
    """
    partly = {dvc.owner(name) for name in (*state.unpulled, *state.remade)}
    changed = {dvc.owner(name) for name in pruned if name in state.tracked}
    kept = {dvc.owner(name) for name in state.present}
    whole = {dvc.owner(name) for name in state.new} | (changed & kept)
    return sorted(
        {name for name in state.new if dvc.owner(name) in partly}
        | {name for name in whole if name not in partly}
    )


def _prune(root: Path, state: State, unnamed: list[str], done: Done, dry_run: bool) -> None:
    """Delete artifacts that no plan names, and stop tracking folders of which nothing is left."""
    lost = sorted({dvc.owner(name) for name in state.unpulled} & {dvc.owner(name) for name in unnamed})
    if lost:
        raise Refused(
            f"{lost[0]} is only partly here, so what is to be deleted cannot be told from what was not pulled; "
            f"`dvc pull {' '.join(lost)}` first, or leave out --prune."
        )
    done.pruned, done.strangers = unnamed, []
    if dry_run:
        return
    for name in unnamed:
        (root / name).unlink()
        for folder in (root / name).parents:
            if folder == root or any(folder.iterdir()):
                break
            folder.rmdir()
    rest = {dvc.owner(name) for name in artifacts(root)}
    dvc.forget(root, {dvc.owner(name) for name in unnamed if name in state.tracked} - rest)


def repair(plan: Plan) -> tuple[list[str], list[str]]:
    """Bring the shared copy of every damaged or remade file back, and delete damaged ones that were never shared.

    Returns both lists. Raises Refused when damage remains.
    """
    root = plan.root
    at_work(root)
    state = inspect(plan)
    wrong = [*state.damaged, *state.remade]
    shared = sorted({name for name in wrong if name in state.tracked})
    lost = {name for name in state.damaged if name not in state.tracked}
    # nothing of an artifact stays without the rest of it
    lost |= {
        name for cell in plan.cells.values() for name in cell.files.values() if lost & {*cell.files.values()}
    }
    deleted = sorted(name for name in lost if name not in state.tracked and (root / name).exists())
    for name in deleted:
        if name.startswith("reports/"):
            shutil.rmtree(root / Path(*Path(name).parts[:2]))
        else:
            (root / name).unlink()
    if shared:
        dvc.bring_back(root, shared, [state.tracked[name] for name in shared])
    left = inspect(plan)
    if left.damaged:
        raise Refused(_damage(left))
    return shared, deleted


def _damage(state: State) -> str:
    lines = [f"  {name}: {reason}" for name, reason in sorted(state.damaged.items())]
    return "\n".join(
        [
            f"Nothing was shared: {len(lines)} artifact(s) are not what their names say.",
            *lines,
            "`palimpsest share --repair` brings back what was shared and deletes the rest; `snakemake` then makes it again.",
        ]
    )


@contextmanager
def _aside(root: Path, names: list[str]) -> Iterator[None]:
    """Keep files out of their folders while DVC adds these as a whole."""
    try:
        for name in names:
            (root / ASIDE / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(root / name, root / ASIDE / name)
        yield
    finally:
        _set_back(root)


def _set_back(root: Path) -> None:
    """Return what was kept aside, also after a kill."""
    if not (root / ASIDE).is_dir():
        return
    for path in sorted(p for p in (root / ASIDE).rglob("*") if p.is_file() or p.is_symlink()):
        place = root / path.relative_to(root / ASIDE)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    shutil.rmtree(root / ASIDE)
