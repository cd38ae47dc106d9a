"""Whether an artifact is what its name says: whole, unchanged since it was written, and made by the recipe of its key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest import seal, store
from palimpsest.cells import HEX, Cell

# What a report says of itself; every other artifact holds its description.
REPORT = "meta.json"


class Damaged(RuntimeError):
    """An artifact that must not be shared; `path` is the file to blame, the message is the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


def files_of(cell: Cell, root: Path) -> list[Path]:
    """The files of an artifact that are there: itself and what lies beside it, or everything in a report's folder. Empty when it has not
    been made or pulled."""
    path = root / cell.path
    if not path.exists():
        return []
    if cell.step == "report":
        return sorted(p for p in path.parent.rglob("*") if p.is_file())
    return [place for name in cell.files.values() if (place := root / name).exists()]


def check(cell: Cell, root: Path, tracked: Mapping[str, str]) -> list[Path]:
    """Raise Damaged for an artifact that is not whole, or not that cell's. tracked: MD5 of every file that DVC knows, by path.

    Returns the files that are whole but not, byte for byte, the ones that were shared under their names: somebody made them again.
    """
    found = files_of(cell, root)
    others = [path for path in found if differs(path, root, tracked)]
    if cell.step != "report":
        for path in found:
            _one(cell, path)
        lost = [name for name in cell.beside.values() if root / name not in found and name not in tracked]
        if lost:
            raise Damaged(found[0], f"{lost[0]}, which is written before it, is gone")
    elif (root / cell.path).with_name(REPORT) in found:
        _report(cell, (root / cell.path).parent, found)
    else:
        for path in found:  # a page that was pulled alone: only DVC can vouch for it
            if path in others or _name(path, root) not in tracked:
                raise Damaged(path, f"its report has no {REPORT} that vouches for it")
    return others


def differs(path: Path, root: Path, tracked: Mapping[str, str]) -> bool:
    """Whether DVC knows the file with other content. Bytes are compared: DVC's own state trusts size and time."""
    known = tracked.get(_name(path, root))
    return known is not None and md5(path) != known


def md5(path: Path) -> str:
    """The digest that DVC names content by."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def description(path: Path) -> dict[str, Any]:
    """What an artifact says of itself. Raises CorruptArtifact when it cannot be read."""
    if path.name == REPORT:
        return dict(store.read_json(path))
    if path.suffix == ".json":
        return dict(store.read_json(path).get("meta", {}))
    return store.read_meta(path)


def _one(cell: Cell, path: Path) -> None:
    """A single file: the format opens, the seal holds, key and recipe are the cell's."""
    try:
        meta = description(path)
        seal.check(path)
    except store.CorruptArtifact as error:
        raise Damaged(path, f"it cannot be read ({error.__cause__})") from error
    except seal.Broken as error:
        raise Damaged(path, str(error)) from error
    text = json.dumps(meta.get("recipe"), sort_keys=True, ensure_ascii=False)
    made = hashlib.sha256(text.encode()).hexdigest()[:HEX]
    if not cell.key == meta.get("key") == made:
        raise Damaged(
            path,
            f"its name says {cell.key}, its description {meta.get('key')}, and the recipe in it makes {made}",
        )


def _report(cell: Cell, folder: Path, found: list[Path]) -> None:
    """A report's folder: its sealed `meta.json` lists every file with its digest."""
    meta = folder / REPORT
    _one(cell, meta)
    listed: dict[str, str] = description(meta).get("files", {})
    for path in found:
        name = path.relative_to(folder).as_posix()
        if path == meta:
            continue
        if name not in listed:
            raise Damaged(path, "it is no part of the report in whose folder it lies")
        if hashlib.sha256(path.read_bytes()).hexdigest() != listed[name]:
            raise Damaged(path, "its bytes changed after it was written")
