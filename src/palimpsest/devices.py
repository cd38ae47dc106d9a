"""Which GPU a job has: one of its own, and as many jobs at a time as there are GPUs.

Snakemake counts GPUs (`gpu` is a resource of the rules that use one) without saying which is free. A job therefore takes one by a lock on a
file of this machine, and holds it until its process ends, however that ends. Where a scheduler has chosen already, a job sees one GPU only
and there is nothing to take.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path

# CUDA's own variable: the GPUs that a process may use, by number or name. It also narrows the choice of all jobs of a run.
VISIBLE = "CUDA_VISIBLE_DEVICES"
NODES = Path("/dev")
# The open files are the locks, until this process ends.
HELD: list[int] = []


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; without the variable, all that the machine has."""
    given = os.environ.get(VISIBLE)
    if given is None:
        found = [path for path in NODES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
        return [str(number) for number in range(len(found))]
    names: list[str] = []
    for name in (part.strip() for part in given.split(",")):
        if name in ("", "-1") or name in names:
            break  # CUDA reads no further either
        names.append(name)
    return names


def reported() -> list[tuple[str, int]] | str:
    """Name and bytes of memory of every GPU that the driver reports; a sentence when it reports none although its tool is there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "nvidia-smi does not answer"
    lines = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line]
    if done.returncode != 0 or not lines:
        return f"nvidia-smi failed: {(done.stderr or done.stdout).strip()[:200]}"
    return [(name.strip(), int(mib) << 20) for name, mib in lines if mib.strip().isdigit()]


def take(wanted: int) -> list[str]:
    """Give this process `wanted` GPUs of those it may use, the least used ones, and hold them until it ends.

    Never waits: when every GPU has a job, it shares the one with the fewest. Children inherit the choice with the environment, so it is to
    be made before they start and before CUDA does.
    """
    known = visible()
    if wanted < 1 or len(known) < 2:
        return known
    folder = _folder()
    taken: list[str] = []
    for place in count():
        for name in known:
            if len(taken) < min(wanted, len(known)) and name not in taken and _lock(folder, name, place):
                taken.append(name)
        if len(taken) == min(wanted, len(known)):
            break
    os.environ[VISIBLE] = ",".join(taken)
    return taken


def release() -> None:
    """Give them back; the end of the process does that too."""
    while HELD:
        os.close(HELD.pop())


def _folder() -> Path:
    """Where this user's locks are, on this machine and for all its runs. Raises PermissionError when somebody else made it."""
    folder = Path(tempfile.gettempdir()) / f"palimpsest-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid():
        raise PermissionError(
            f"{folder} belongs to another user, so no GPU can be locked there. Remove it, set TMPDIR to a folder of your own, or "
            f"set {VISIBLE} to one GPU."
        )
    return folder


def _lock(folder: Path, name: str, place: int) -> bool:
    """Whether a place on a GPU was free and is ours now; also True where the file system has no locks."""
    import fcntl

    handle = os.open(folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', name)}.{place}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    except OSError:
        pass
    HELD.append(handle)
    return True
