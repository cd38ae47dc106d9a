"""`palimpsest validate`: settings files checked whole, each on its own."""

from __future__ import annotations

from pathlib import Path

from palimpsest import params

BASE = "params.yaml"


def everything(root: Path) -> list[Path]:
    """The default settings, every overlay and every method file of a project."""
    return [
        Path(BASE),
        *(
            p.relative_to(root)
            for folder in ("experiments", "methods")
            for p in sorted((root / folder).glob("*.yaml"))
        ),
    ]


def check(path: Path, root: Path) -> list[str]:
    """Problems of one file: an overlay is laid over params.yaml and planned, a method file has each preset checked."""
    try:
        if path.parent.name == "methods":
            return _method(path, root)
        return _experiment(path, root)
    except params.BadSettings as error:
        return str(error).splitlines()


def _experiment(path: Path, root: Path) -> list[str]:
    from palimpsest.plan.build import build

    files = [root / BASE] if path.name == BASE else [root / BASE, root / path]
    build(params.load(*files), root)
    return []


def _method(path: Path, root: Path) -> list[str]:
    from palimpsest.methods import registry

    presets = params.read_yaml(root / path).get("presets")
    preset = next(iter(presets), "") if isinstance(presets, dict) else ""
    # Reading one preset checks the whole file, and no other file.
    registry.settings(path.stem, preset, folder=(root / path).parent)
    return []
