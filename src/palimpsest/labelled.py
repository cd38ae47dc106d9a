"""Which files of labels an experiment has, and their contents' digests, for the plan."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml

LABELS = Path("data/labels")


def label_files(root: Path, experiment: str) -> dict[str, str]:
    """Path -> MD5 of every Parquet file of labels of an experiment, by path relative to `root`, sorted.

    A file that is here counts as it is: labels grow, and what DVC was told last may be older. One that is not here counts by its `.dvc`
    file. MD5 because that is what DVC writes there: tracking a file must not change the key.
    """
    folder = root / LABELS / experiment
    names = {path.name for path in folder.glob("*.parquet")}
    names |= {path.name.removesuffix(".dvc") for path in folder.glob("*.parquet.dvc")}
    return {(LABELS / experiment / name).as_posix(): _digest(folder / name) for name in sorted(names)}


def _digest(path: Path) -> str:
    if path.is_file():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    tracked = yaml.safe_load(path.with_name(f"{path.name}.dvc").read_text(encoding="utf-8"))
    return str(tracked["outs"][0]["md5"])
