"""Code stamps of the plan, remembered by the bytes of the sources they were made from: unchanged files are not parsed again."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from palimpsest import closure
from palimpsest.memory import keep, recall

MEMORY = Path(".palimpsest/code.json")
# More than one experiment, and a few states of the code, on each of which every stamp is some 130 bytes.
MOST = 2000
_known: dict[Path, dict[str, str]] = {}


@cache
def stamp(roots: tuple[str, ...]) -> dict[str, Any]:
    """What closure.stamp gives for the roots.

    The bytes of the modules that count decide what their code means, so a remembered digest cannot be another than a computed one. Among
    these modules is the one that computes digests, since every job checks them.
    """
    names = closure.modules(roots)
    sources = closure.bytes_digest(names)
    mark = f"{' '.join(roots)} {sources} {sys.version_info[0]}.{sys.version_info[1]}"
    known = _read()
    if mark not in known:
        known[mark] = closure.digest(roots)
        keep(MEMORY, known, MOST)
    return {"roots": list(roots), "code": known[mark], "modules": list(names), "sources": sources}


def _read() -> dict[str, str]:
    place = MEMORY.absolute()
    if place not in _known:
        _known[place] = recall(place)
    return _known[place]
