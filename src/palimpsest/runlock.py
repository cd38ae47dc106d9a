"""One run at a time in a project folder: the second is told who runs, and what a killed run left behind is cleared away.

The lock is the kernel's (flock), so it is gone with its holder, however that ended. Whoever has it knows that no other run is alive, and
may remove the lock files by which Snakemake remembers a run that was killed, and half-written files.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

FILE = Path(".palimpsest/run.lock")
SNAKEMAKE = Path(".snakemake/locks")
WRITTEN = ("data", "models", "reports", ".palimpsest")
PART = re.compile(r"\.(?:(?P<host>[A-Za-z0-9_]+)-)?(?P<pid>\d+)\.part$")
UNKNOWN = "a process that has just started"
# The open file is the lock, until this process ends.
HELD: list[int] = []


class Busy(RuntimeError):
    """Another run holds the folder, or may do so; the message says which and what to do."""


@dataclass(frozen=True)
class Holder:
    """Who took the lock: process id, machine, start (local time, ISO 8601) and command."""

    pid: int
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (`{self.command}`), since {self.since}"


def take(root: Path) -> list[str]:
    """Lock the folder for this process until it ends, and clear away the lock of a run that was killed; says what was cleared.

    Raises Busy when another run is alive, or was started on another machine and left Snakemake's lock behind.
    """
    handle = _open(root)
    if handle is None:
        return []
    before = _read(root)
    if not _lock(handle):
        os.close(handle)
        raise Busy(
            f"another run is under way in this folder: {_read(root) or UNKNOWN}. Nothing was done. "
            "Wait until it ends, or stop it, and run the same command again: what is done stays done."
        )
    cleared = []
    if left_behind(root):
        if before and before.host != platform.node():
            os.close(handle)
            raise Busy(
                f"the last run in this folder did not end by itself, and was on another machine: {before}. When it is gone, "
                f"`rm -r {SNAKEMAKE}` and run the same command again."
            )
        shutil.rmtree(root / SNAKEMAKE)
        cleared.append(f"the lock of a run that was killed{f' ({before})' if before else ''}")
    _write(handle, Holder(os.getpid(), platform.node(), _now(), _command()))
    HELD.append(handle)
    atexit.register(release)
    return cleared


def release() -> None:
    """Give the lock back; the end of the process does that too."""
    while HELD:
        handle = HELD.pop()
        os.ftruncate(handle, 0)
        os.close(handle)


def holder(root: Path) -> str | None:
    """Who runs in the folder now, in words; None when nobody does."""
    if not (root / FILE).is_file():
        return None
    handle = _open(root)
    if handle is None:
        return None
    try:
        free = _lock(handle)
    finally:
        os.close(handle)
    return None if free else str(_read(root) or UNKNOWN)


def leftovers(root: Path) -> Iterator[Path]:
    """Half-written files and folders of processes of this machine that are gone."""
    for top in WRITTEN:
        for folder, folders, files in os.walk(root / top):
            for name in [*folders, *files]:
                made = PART.search(name)
                if made and _is_here(made["host"]) and not _alive(int(made["pid"])):
                    yield Path(folder, name)
            folders[:] = [name for name in folders if not PART.search(name)]


def clear_leftovers(root: Path) -> list[Path]:
    """Remove them; returns what was removed."""
    found = list(leftovers(root))
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def _open(root: Path) -> int | None:
    """The open lock file; None where it cannot be had (a read-only folder): Snakemake's own lock remains."""
    try:
        (root / FILE).parent.mkdir(exist_ok=True)
        return os.open(root / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        return None


def _lock(handle: int) -> bool:
    """Whether the lock was free and is ours now; also True where the file system has no locks."""
    for pause in (0.1, 0.1, 0.0):  # `holder` has it for a moment when it looks
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
        except (ImportError, OSError):
            return True
        else:
            return True
    return False


def left_behind(root: Path) -> bool:
    """Whether Snakemake's own lock is there; with nobody running, a killed run left it."""
    folder = root / SNAKEMAKE
    return folder.is_dir() and any(folder.iterdir())


def _read(root: Path) -> Holder | None:
    try:
        found: dict[str, Any] = json.loads((root / FILE).read_text(encoding="utf-8"))
        return Holder(**found)
    except (OSError, ValueError, TypeError):
        return None


def _write(handle: int, mine: Holder) -> None:
    """Say who we are; a full disk does not keep us from holding the lock."""
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(mine)).encode(), 0)
    except OSError:
        pass


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name.replace("__main__.py", "snakemake"), *sys.argv[1:]])


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _is_here(host: str | None) -> bool:
    from palimpsest.store import node

    return host is None or host == node()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
