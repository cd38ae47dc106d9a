"""Small things that were worked out once and are kept between processes, as JSON under `.palimpsest/`. Losing them costs time only."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path


def recall(place: Path) -> dict[str, str]:
    """What was kept; nothing when the file is not there or is not what `keep` writes."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        return {str(mark): str(value) for mark, value in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def keep(place: Path, known: dict[str, str], most: int = 0) -> None:
    """Write all of `known`, after leaving out the oldest beyond `most` (0: no limit). A folder that cannot be written is no error."""
    while most and len(known) > most:
        del known[next(iter(known))]
    with suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        part = place.with_name(f"{place.name}.{os.getpid()}.part")
        part.write_text(json.dumps(known), encoding="utf-8")
        os.replace(part, place)
