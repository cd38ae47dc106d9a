"""Whether the weights an experiment needs are at hand, and what to do when they are not. Loads no library and no weight."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from palimpsest import packaged
from palimpsest.detectors import registry as detectors
from palimpsest.params import Params
from palimpsest.plan.quality import chosen as chosen_measures
from palimpsest.runs import Run
from palimpsest.segmenters.registry import chosen

# What a snapshot of a whole diffusion model holds, and one that was fetched for its safety checker alone does not.
WHOLE = ("unet/*.safetensors",)
# Section of the settings, name in it, path, revision, and what a snapshot of that has to hold.
Wanted = tuple[str, str, str, str | None, Sequence[str]]


def hub_cache() -> Path:
    """The folder in which the Hugging Face libraries keep downloads."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def is_hub_id(path: str) -> bool:
    """Whether a settings path can mean a hub repository: two plain parts, and no file of weights."""
    parts = path.split("/")
    return (
        len(parts) == 2
        and all(parts)
        and not path.startswith((".", "~"))
        and not path.endswith(".safetensors")
    )


def snapshot(path: str, revision: str | None) -> Path:
    """Where the hub cache keeps a finished download; a branch or tag leads to the commit that it stood for."""
    place = hub_cache() / f"models--{path.replace('/', '--')}"
    branch = place / "refs" / (revision or "main")
    commit = branch.read_text(encoding="utf-8").strip() if branch.is_file() else str(revision or "")
    return place / "snapshots" / commit


def present(path: str, revision: str | None, root: Path, stored: Sequence[str] = ()) -> bool:
    """Whether the weights are a local file or folder, part of an installed package, or a finished snapshot in the hub cache.

    stored: patterns of which a snapshot has to hold one, since another use of the same repository may have left it out.
    """
    if packaged.is_packaged(path):
        return packaged.find(path) is not None
    if (root / path).exists():
        return True
    place = snapshot(path, revision)
    return is_hub_id(path) and place.is_dir() and any(any(place.glob(name)) for name in stored or ("*",))


def check_weights(params: Params, root: Path, runs: Iterable[Run] = ()) -> list[str]:
    """One line for every missing checkpoint, of the experiment and of these methods: what it is, where to get it, where to put it."""
    wanted: list[Wanted] = [("model", "path", params.model.path, params.model.revision, WHOLE)]
    wanted += [
        (f"detectors.{name}", setting, path, revision, ())
        for name, found in detectors.chosen(params).items()
        for setting, (path, revision) in found.files.items()
    ]
    return [*_absent(wanted, root), *_absent_files(runs, root)]


def check_masks(params: Params, root: Path) -> list[str]:
    """The same for what masked training images are made with. Raises BadSettings when the settings do not say how."""
    wanted: list[Wanted] = [
        ("masks", name, path, revision, ()) for name, (path, revision) in chosen(params).files.items()
    ]
    return _absent(wanted, root)


def check_quality(params: Params, root: Path) -> list[str]:
    """The same for what measures quality: weights, and real pictures."""
    problems = []
    for measure in chosen_measures(params):
        where = f"quality.measures.{measure.name}"
        for setting, (path, revision) in measure.files.items():
            if present(path, revision, root):
                continue
            if path.endswith(".safetensors"):
                what = (
                    f"there is no {path}; `python -m palimpsest.metrics.convert --help` says how it is made"
                )
            elif is_hub_id(path):
                what = (
                    f"{_download(path, revision)}, or set {where}.{setting} to a local folder that holds them"
                )
            else:
                what = f"there is no {path}. Run `git checkout -- {path}`, or `snakemake world` to train it again"
            problems.append(f"{where}: {what}, or leave {measure.name} out of `quality.measures`.")
    for suite, real in params.quality.real.items():
        if params.quality.measures and not (root / real.path).exists():
            problems.append(
                f"quality.real.{suite}: there are no pictures at {real.path}. Put the real pictures of the prompts there, named by the "
                f"prompts' numbers (12 digits, .jpg or .png), or leave {suite} out of `quality.real`."
            )
    return problems


def _absent(wanted: Iterable[Wanted], root: Path) -> list[str]:
    problems = []
    for key, name, path, revision, stored in wanted:
        if present(path, revision, root, stored):
            continue
        if packaged.is_packaged(path):
            package = path.removeprefix(packaged.PREFIX).partition("/")[0]
            problems.append(
                f"{key}: the installed package {package!r} does not bring {path!r}; run `make setup`."
            )
        elif is_hub_id(path):
            problems.append(
                f"{key}: {_download(path, revision)}, or set {key}.{name} to a local folder that holds them."
            )
        else:
            problems.append(
                f"{key}: there is no {path}. Run `git checkout -- {path}`, or `snakemake world` to train it again."
            )
    return problems


def _absent_files(runs: Iterable[Run], root: Path) -> list[str]:
    """What methods' settings name and is not there."""
    problems = []
    named = {(run.method, file): None for run in runs for file in run.files}
    for method, file in named:
        if present(file.path, file.revision, root, file.stored):
            continue
        setting = f"overrides.{method}.{file.setting}"
        without = f"or leave {method} out of `methods`"
        if is_hub_id(file.path):
            what = f"{_download(file.path, file.revision)}, or set `{setting}` to a local folder or a mirror that has them"
        else:
            what = f"there is no {file.path}. Put it there (`git checkout -- {file.path}` if it is part of the project), or set `{setting}`"
        problems.append(f"methods.{method}: {what}, {without}.")
    return problems


def _download(path: str, revision: str | None) -> str:
    at = f" --revision {revision}" if revision else ""
    return (
        f"the weights {path!r} are not in the hub cache ({hub_cache()}). Read and accept their licence on the hub, then run "
        f"`hf download {path}{at}` on a machine with network access (or `palimpsest download` for all that the "
        "experiment reads)"
    )
