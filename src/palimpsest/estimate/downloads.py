"""What an experiment reads that is not part of the project: weights with sizes and licences, prompts, real pictures; here or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from palimpsest import packaged
from palimpsest.needs import weights_bytes
from palimpsest.plan.build import Plan
from palimpsest.segmenters import registry as segmenters
from palimpsest.weights import WHOLE, is_hub_id, present

TABLE = Path(__file__).with_name("weights.yaml")


@dataclass(frozen=True)
class Item:
    """One repository, file or folder. bytes: None when nobody knows. here: whether it is on this machine. note: what to mind.
    stored: weights of a repository that are read beside or instead of the whole; whole: whether that is read too."""

    path: str
    revision: str | None
    used: str
    bytes: int | None
    licence: str
    here: bool
    note: str = ""
    stored: tuple[str, ...] = ()
    whole: bool = True


@lru_cache(maxsize=1)
def known() -> dict[str, dict[str, Any]]:
    """Sizes and licences by hub id."""
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return loaded


def _named(plan: Plan) -> Iterator[tuple[str, str, str | None, tuple[str, ...]]]:
    """(what for, path, revision, which weights of a repository) of all weights that the settings name; () for all of them."""
    params = plan.params
    yield "model", params.model.path, params.model.revision, ()
    for name, chosen in plan.detectors.items():
        for path, revision in chosen.files.values():
            yield f"detector {name}", path, revision, ()
    for run in plan.applicable():
        for file in run.files:
            yield f"method {run.method}", file.path, file.revision, file.stored
    if any(cell.step == "masks" for cell in plan.cells.values()):
        for path, revision in segmenters.chosen(params).files.values():
            yield "masks", path, revision, ()
    for measure in plan.quality.measures:
        for path, revision in measure.files.values():
            yield f"quality {measure.name}", path, revision, ()


def items(plan: Plan) -> list[Item]:
    """Everything that is read, each once, what is missing first."""
    uses: dict[tuple[str, str | None], dict[str, tuple[str, ...]]] = {}
    for use, path, revision, stored in _named(plan):
        if not packaged.is_packaged(path):
            uses.setdefault((path, revision), {})[use] = stored
            for other in known().get(path, {}).get("needs", ()):
                uses.setdefault((other, None), {})[use] = ()
    found = [_item(plan.root, *key, dict(sorted(names.items()))) for key, names in uses.items()]
    found += [*_prompts(plan), *_real(plan)]
    return sorted(found, key=lambda item: item.here)


def _item(root: Path, path: str, revision: str | None, uses: dict[str, tuple[str, ...]]) -> Item:
    """uses: what for -> which weights of a repository, () for all of them."""
    about, hub = known().get(path, {}), is_hub_id(path) and not (root / path).exists()
    parts = dict.fromkeys(stored for stored in uses.values() if stored)
    whole = not all(uses.values())
    model = (WHOLE,) if "model" in uses else ((),) if whole else ()
    here = all(present(path, revision, root, stored) for stored in (*parts, *model))
    size = weights_bytes(path, revision, root) if here else None
    if size is None and "bytes" in about:
        extra = about.get("beside", {})
        size = int(about["bytes"] if whole else 0) + sum(
            int(extra.get(name, 0)) for names in parts for name in names
        )
    notes = [f"only its {about['only']}"] if "only" in about else []
    if hub and revision in (None, "main") and "only" not in about:
        notes.append("not pinned to a commit")
    if not hub and not here:
        notes.append("to be made or put there; `palimpsest doctor --config` says how")
    licence = str(about.get("licence", "see its page" if hub else "yours or the project's"))
    stored = tuple(dict.fromkeys(name for names in parts for name in names))
    return Item(path, revision, ", ".join(uses), size, licence, here, "; ".join(notes), stored, whole)


def _prompts(plan: Plan) -> Iterator[Item]:
    for name, suite in plan.params.suites.items():
        for source in suite.sources.values():
            place = plan.root / source.path
            here = place.is_file() or place.with_name(place.name + ".dvc").is_file()
            size = place.stat().st_size if place.is_file() else None
            yield Item(
                source.path,
                None,
                f"suite {name}",
                size,
                "of its authors",
                here,
                "" if here else "to be put there",
            )


def _real(plan: Plan) -> Iterator[Item]:
    for name, real in plan.params.quality.real.items():
        here = (plan.root / real.path).exists()
        note = "" if here else "to be put there"
        yield Item(real.path, None, f"real pictures of {name}", None, "of its authors", here, note)


def to_fetch(found: list[Item]) -> int:
    """Bytes to download: what is missing and known."""
    return sum(item.bytes or 0 for item in found if not item.here)
