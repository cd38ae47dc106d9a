"""Files that an installed package brings along, written `package:NAME/FILE` in settings, so that no path of a machine is in any recipe."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

PREFIX = "package:"


def is_packaged(path: str) -> bool:
    """Whether a settings path means a file of a package."""
    return path.startswith(PREFIX)


def find(path: str) -> Path | None:
    """Where the file is; None for other paths, and when the package or the file is not there. Imports no package."""
    if not is_packaged(path):
        return None
    package, _, inside = path.removeprefix(PREFIX).partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(next(iter(spec.submodule_search_locations))) / inside
    return place if place.is_file() else None
