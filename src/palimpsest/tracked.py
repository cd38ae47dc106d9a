"""What DVC tracks, and the DVC commands that sharing runs. Nothing else calls DVC."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

# Artifacts lie here; each folder below belongs to one owner.
PLACES = ("models", "data/generations", "data/scores", "data/tables", "reports")
SHARED = "data/shared"


class DvcFailed(RuntimeError):
    """A DVC command that failed; the message holds the command and what it said."""


def owner(path: str) -> str:
    """The path that a `.dvc` file stands for: a method's folder, a report's, all shared inputs, or a table alone.

    A table belongs to nobody in particular, so each is tracked by itself: two people who add methods then never change one file.
    """
    parts = PurePosixPath(path).parts
    if path.startswith(f"{SHARED}/"):
        return SHARED
    if path.startswith("data/tables/"):
        return path
    return "/".join(parts[: 3 if parts[0] == "data" else 2])


def run(root: Path, *arguments: str) -> str:
    """Run DVC in a project and return what it printed. Raises DvcFailed."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shown = " ".join(["dvc", *arguments[:4], *(["..."] if len(arguments) > 4 else [])])
        raise DvcFailed(f"`{shown}` failed:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout


def tracked(root: Path) -> dict[str, str]:
    """MD5 of every file that the `.dvc` files of the working tree stand for, by path, whether it was pulled or not."""
    if not (root / ".dvc").is_dir():
        raise DvcFailed(f"{root.resolve()} is no DVC project; `git clone` brings one, `dvc init` makes one")
    listed = json.loads(run(root, "list", ".", "-R", "--dvc-only", "--show-hash", "--json") or "[]")
    return {entry["path"]: entry["md5"] for entry in listed if entry.get("md5")}


def add(root: Path, targets: Iterable[str]) -> None:
    """Track folders whole, or files: also single files of a folder that is tracked and only partly here."""
    targets = sorted(targets)
    if targets:
        run(root, "add", "--quiet", *targets)


def forget(root: Path, owners: Iterable[str]) -> None:
    """Stop tracking; data stay in the cache and in remotes for older commits."""
    targets = [f"{name}.dvc" for name in sorted(owners)]
    if targets:
        run(root, "remove", "--quiet", *targets)


def remotes(root: Path) -> list[str]:
    """Names of the remotes that are set up."""
    return [line.split()[0] for line in run(root, "remote", "list").splitlines() if line.strip()]


def bring_back(root: Path, names: Sequence[str], digests: Sequence[str]) -> None:
    """Put the tracked content of files in their places again, from the cache where its copy is whole, else from the remote.

    With links between cache and folder a changed file is a changed cache too; such copies are thrown away first.
    """
    from palimpsest.verify import md5

    cache = Path(run(root, "cache", "dir").strip())
    complete = True
    for name, digest in zip(names, digests, strict=True):
        (root / name).unlink(missing_ok=True)
        cached = root / cache / "files" / "md5" / digest[:2] / digest[2:]
        if cached.exists() and md5(cached) != digest:
            cached.unlink()
        complete = complete and cached.exists()
    run(root, "checkout" if complete else "pull", "--force", "--quiet", *names)
