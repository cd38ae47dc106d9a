"""Digests of raw inputs: prompt files, checkpoint folders, hub ids pinned to a revision."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml

from palimpsest.memory import keep, recall

LARGE = 64 << 20
MEMORY = Path(".palimpsest/digests.json")


def fingerprint(path: str | Path, revision: str | None = None, root: str | Path = ".") -> str:
    """The digest of a file or folder below `root`; "missing" when it is not there; the id itself for a hub id.

    Content decides, never time stamps: an edit with an old date is seen. A file tracked by DVC counts by the hash in its `.dvc` file, so it
    need not be present.
    """
    place = Path(root) / path
    tracked = place.with_name(place.name + ".dvc")
    if tracked.is_file():
        return _from_dvc(tracked)
    if place.is_dir():
        files = sorted(p for p in place.rglob("*") if p.is_file() and not p.name.endswith(".md"))
        digests = _files(files)
        lines = [f"{p.relative_to(place).as_posix()} {digests[p]}" for p in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
    if place.is_file():
        return _files([place])[place]
    return f"{path}@{revision}" if revision else "missing"


def _from_dvc(tracked: Path) -> str:
    out = yaml.safe_load(tracked.read_text(encoding="utf-8"))["outs"][0]
    return next(str(out[name]) for name in ("md5", "etag", "checksum") if name in out)


def _files(paths: list[Path]) -> dict[Path, str]:
    """The digest of every file. Files that are large, alone or together, are read once and remembered."""
    large = [path for path in paths if path.stat().st_size >= LARGE]
    many = [path for path in paths if path not in large]
    if sum(path.stat().st_size for path in many) >= LARGE:
        large = paths
    known = _remembered(large) if large else {}
    return {path: known[path] if path in known else _hash(path) for path in paths}


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:32]


def _remembered(paths: list[Path]) -> dict[Path, str]:
    """Digests of files, remembered by inode, size and times to the nanosecond (ctime cannot be set back by hand)."""
    marks = {path: _mark(path) for path in paths}
    known = recall(MEMORY)
    unknown = [path for path in paths if marks[path] not in known]
    for path in unknown:
        known[marks[path]] = _hash(path)
    if unknown:
        keep(MEMORY, known)
    return {path: known[marks[path]] for path in paths}


def _mark(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
