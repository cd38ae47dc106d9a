"""Whether the weights an experiment needs are at hand, and what to do when they are not. Loads no library and no weight."""

from __future__ import annotations

import os
from pathlib import Path

from palimpsest.params import Params


def hub_cache() -> Path:
    """The folder in which the Hugging Face libraries keep downloads."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def is_hub_id(path: str) -> bool:
    """Whether a settings path can only mean a hub repository: two plain parts, and no such folder here."""
    parts = path.split("/")
    return len(parts) == 2 and all(parts) and not path.startswith((".", "~"))


def present(path: str, revision: str | None, root: Path) -> bool:
    """Whether the weights are a local file or folder, or a finished snapshot in the hub cache."""
    if (root / path).exists():
        return True
    snapshot = hub_cache() / f"models--{path.replace('/', '--')}" / "snapshots" / str(revision or "")
    return is_hub_id(path) and snapshot.is_dir() and any(snapshot.iterdir())


def check_weights(params: Params, root: Path) -> list[str]:
    """One line for every missing checkpoint: what it is, where to get it, where to put it."""
    wanted = [("model", params.model.path, params.model.revision)]
    wanted += [(f"detectors.{name}", spec.path, spec.revision) for name, spec in params.detectors.items()]
    problems = []
    for key, path, revision in wanted:
        if present(path, revision, root):
            continue
        if is_hub_id(path):
            at = f" --revision {revision}" if revision else ""
            problems.append(
                f"{key}: the weights {path!r} are not in the hub cache ({hub_cache()}). Read and accept their licence on the hub, then run "
                f"`hf download {path}{at}` on a machine with network access, or set {key}.path to a local folder that holds them."
            )
        else:
            problems.append(
                f"{key}: there is no {path}. Run `git checkout -- {path}`, or `snakemake world` to train it again."
            )
    return problems
