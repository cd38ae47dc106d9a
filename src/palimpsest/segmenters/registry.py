"""The segmenter that an experiment's settings choose, checked before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from palimpsest import params
from palimpsest.fingerprint import fingerprint
from palimpsest.memory import keep, recall
from palimpsest.segmenters import contract
from palimpsest.stamps import stamp

MEMORY = Path(".palimpsest/masks.json")
MOST = 200


@dataclass(frozen=True)
class Chosen:
    """A segmenter and its checked settings. files: setting -> (path, revision) of what decides its result."""

    kind: str
    segmenter: contract.Segmenter
    settings: Any

    @property
    def module(self) -> str:
        return f"palimpsest.segmenters.{self.kind}"

    @property
    def files(self) -> dict[str, tuple[str, str | None]]:
        named = {name: getattr(self.settings, name) for name in self.segmenter.INFO.files}
        return {
            name: (path, getattr(self.settings, f"{name}_revision", None)) for name, path in named.items()
        }

    @property
    def args(self) -> dict[str, Any]:
        """What decides its result, as plain data."""
        return {"kind": self.kind, "settings": self.settings.model_dump(mode="json")}


def chosen(settings: params.Params) -> Chosen:
    """The segmenter of `masks:`. Raises BadSettings when there is none, it does not exist, or its settings are wrong."""
    spec = settings.masks
    if spec is None:
        raise params.BadSettings(
            f"masks: a method of this experiment needs masked training images, and nothing says how they are made; "
            f"give `masks: {{kind: ...}}` with one of {contract.names()}"
        )
    try:
        segmenter = contract.find(spec.kind)
        return Chosen(spec.kind, segmenter, segmenter.Settings.model_validate(spec.model_extra or {}))
    except ValidationError as error:
        known = {"": list(segmenter.Settings.model_fields)}
        lines = params.problems_of(error, f"masks ({spec.kind})", known)
        raise params.BadSettings("\n".join(lines)) from error
    except ValueError as error:
        raise params.BadSettings(str(error)) from error


def check(settings: params.Params, counts: Mapping[str, int], root: Path) -> None:
    """Raise BadSettings when the segmenter cannot give `counts` masked images per theme.

    What was found in order is remembered by everything it depends on: looking into files again would take a third of the time of a plan.
    """
    made = chosen(settings)
    wanted = [
        contract.Asked(name, tuple(theme.detailed), 0, counts.get(name, 0))
        for name, theme in settings.themes.items()
    ]
    files = {path: fingerprint(path, revision, root) for path, revision in made.files.values()}
    code = stamp((made.module,))["code"]
    asked = [code, made.args, files, [(one.theme, one.keywords, one.stop) for one in wanted]]
    mark = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    known = recall(MEMORY)
    if mark in known:
        return
    problems = made.segmenter.problems(made.settings, wanted, root)
    if problems:
        raise params.BadSettings("\n".join(f"masks ({made.kind}): {problem}" for problem in problems))
    keep(MEMORY, known | {mark: "in order"}, MOST)
