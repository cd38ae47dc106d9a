"""Code stamps of the plan, remembered by the bytes of the sources they were made from: unchanged files are not parsed again."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from palimpsest import closure
from palimpsest.memory import keep, recall

MEMORY = Path(".palimpsest/code.json")
IMPORTS = Path(".palimpsest/imports.json")
# More than one experiment, and a few states of the code, on each of which every stamp is some 130 bytes.
MOST = 2000
# Lists of modules are some 2 kB each, and a state of the code has about fifty.
MOST_LISTS = 200
_known: dict[Path, dict[str, str]] = {}


@cache
def stamp(roots: tuple[str, ...]) -> dict[str, Any]:
    """What closure.stamp gives for the roots.

    The bytes of the modules that count decide what their code means, so a remembered digest cannot be another than a computed one. Among
    these modules is the one that computes digests, since every job checks them.
    """
    names = modules(roots)
    sources = closure.bytes_digest(names)
    mark = f"{' '.join(roots)} {sources} {sys.version_info[0]}.{sys.version_info[1]}"
    known = _read(MEMORY)
    if mark not in known:
        known[mark] = closure.digest(roots)
        keep(MEMORY, known, MOST)
    return {"roots": list(roots), "code": known[mark], "modules": list(names), "sources": sources}


def modules(roots: tuple[str, ...]) -> tuple[str, ...]:
    """What closure.modules gives, remembered as long as no file of this package changes: the graph of imports takes longer than a plan."""
    if not all(closure.is_ours(root) for root in roots):
        return closure.modules(roots)
    mark = f"{' '.join(roots)} {closure.tree()} {sys.version_info[0]}.{sys.version_info[1]}"
    known = _read(IMPORTS)
    if mark not in known:
        known[mark] = " ".join(closure.modules(roots))
        keep(IMPORTS, known, MOST_LISTS)
    return tuple(known[mark].split())


def _read(kept: Path) -> dict[str, str]:
    place = kept.absolute()
    if place not in _known:
        _known[place] = recall(place)
    return _known[place]
