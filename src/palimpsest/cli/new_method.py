"""`palimpsest new-method`: a working module, its settings file and its page, to start from."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

TEMPLATES = Path(__file__).parent / "templates"
MODULES = Path("src/palimpsest/methods")
SETTINGS = Path("methods")
PAGES = Path("docs/methods")
# Words with a meaning of their own in settings and file names, and the folder of the micro world beside the methods' artifacts.
RESERVED = ("all", "none", "micro", "contract", "registry", "base")


class BadName(ValueError):
    """A name that no new method can have; the message says what would do."""


def check(name: str, root: Path) -> None:
    """Raise BadName when `name` is not a free, plain module name."""
    if not re.fullmatch("[a-z][a-z0-9_]{0,39}", name) or name.endswith("_"):
        raise BadName(
            f"{name!r} cannot name a method; allowed: lower case letters, digits and underscores, a letter first, at most 40 characters, "
            "such as my_method"
        )
    if keyword.iskeyword(name) or name in RESERVED:
        raise BadName(f"{name!r} is a reserved word; take another, such as {name}_method")
    if not (root / MODULES).is_dir():
        raise BadName(
            f"there is no {MODULES} in {root.resolve()}; run this in the project folder (where the Snakefile is)"
        )
    for path in (*(root / target for _, target in targets(name)), root / MODULES / name):
        if path.exists():
            raise BadName(f"{path} exists; nothing was written. Choose another name, or edit that file.")


def targets(name: str) -> list[tuple[str, Path]]:
    """Template and place of every file of a new method: module, settings, page."""
    return [
        ("method.py.tmpl", MODULES / f"{name}.py"),
        ("method.yaml.tmpl", SETTINGS / f"{name}.yaml"),
        ("method.md.tmpl", PAGES / f"{name}.md"),
    ]


def write(name: str, root: Path) -> list[Path]:
    """Write the files and return their paths. Raises BadName; an existing file is never touched."""
    check(name, root)
    values = {"name": name, "title": " ".join(part.capitalize() for part in name.split("_") if part)}
    for template, path in targets(name):
        text = Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with open(root / path, "x", encoding="utf-8") as handle:
            handle.write(text)
    return [path for _, path in targets(name)]
