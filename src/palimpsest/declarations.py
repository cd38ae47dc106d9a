"""Whether a Python file is a plugin: what it defines at its top level, read and not run, so that asking imports nothing."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def declares(path: Path, name: str) -> bool:
    """Whether the file assigns `name` or defines a function of that name at its top level; false when it is not there.

    Asked once per process. Most files do not have the word at the start of a line, and need no parsing to know it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    if not any(f"\n{start}" in f"\n{text}" for start in (name, f"def {name}")):
        return False
    return any(name in _names(node) for node in ast.parse(text).body)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return [target.id for target in targets if isinstance(target, ast.Name)]


def plugins(folder: Path, name: str) -> list[str]:
    """The files of a folder that declare `name`, without suffix, sorted; files that start with an underscore are no plugins."""
    return sorted(p.stem for p in folder.glob("*.py") if not p.name.startswith("_") and declares(p, name))
