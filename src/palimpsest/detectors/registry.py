"""The detectors that an experiment's settings name, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from palimpsest import packaged, params
from palimpsest.detectors import contract
from palimpsest.fingerprint import fingerprint
from palimpsest.specs import Rule


@dataclass(frozen=True)
class Chosen:
    """A detector of `detectors:` by its name there, with its checked settings."""

    name: str
    spec: params.Detector
    detector: contract.Detector
    settings: Any

    @property
    def module(self) -> str:
        return f"palimpsest.detectors.{self.spec.kind}"

    @property
    def files(self) -> dict[str, tuple[str, str | None]]:
        """Setting -> (path, revision) of what decides its result."""
        own = {"path": (self.spec.path or self.detector.INFO.weights, self.spec.revision)}
        named = {name: getattr(self.settings, name) for name in self.detector.INFO.files}
        more = {
            name: (path, getattr(self.settings, f"{name}_revision", None)) for name, path in named.items()
        }
        return {name: file for name, file in (own | more).items() if file[0]}

    @cached_property
    def args(self) -> dict[str, Any]:
        """What decides its result, as plain data: only settings that were given, so that a new one changes no recipe."""
        return self.spec.model_dump(exclude={"batch"}, mode="json")

    def raw(self, root: Path) -> dict[str, str]:
        """Digest of every file by its path."""
        return {path: digest(path, revision, root) for path, revision in self.files.values()}

    def texts(self, rules: Mapping[str, Rule]) -> dict[str, dict[str, str]]:
        """The other question texts of the rules that are for this detector."""
        return {
            name: rule.texts
            for name, rule in rules.items()
            if rule.texts and self.name in (rule.detectors or [self.name])
        }


def chosen(settings: params.Params) -> dict[str, Chosen]:
    """The detectors of `detectors:` by name. Raises BadSettings when one does not exist, its settings are wrong, or a rule cannot read
    what it is for."""
    found, problems = {}, []
    for name, spec in settings.detectors.items():
        try:
            detector = contract.find(spec.kind)
            found[name] = Chosen(
                name, spec, detector, detector.Settings.model_validate(spec.model_extra or {})
            )
            if not found[name].files:
                problems.append(f"detectors.{name}: path is empty; say where the weights of {spec.kind} are")
        except ValidationError as error:
            known = {"": list(detector.Settings.model_fields)}
            problems += params.problems_of(error, f"detectors.{name} ({spec.kind})", known)
        except ValueError as error:
            problems.append(str(error))
    if not problems:
        problems += _unreadable(settings, found)
    if problems:
        raise params.BadSettings("\n".join(problems))
    return found


def judged_by(settings: params.Params, found: Mapping[str, Chosen], rule: Rule) -> list[str]:
    """Names of the detectors that a rule is for: those it names, else all whose scores it can read; own thresholds are the judge's."""
    if rule.detectors:
        return list(rule.detectors)
    if rule.kind == "calibrated":
        return [settings.judge]
    return [name for name in settings.detectors if rule.kind in found[name].detector.INFO.rules]


def _unreadable(settings: params.Params, found: Mapping[str, Chosen]) -> list[str]:
    problems = []
    for name, rule in settings.rules.items():
        for other in rule.detectors:
            kinds = found[other].detector.INFO.rules
            if rule.kind not in kinds or ("labels" in kinds and not rule.labels):
                problems.append(
                    f"rules.{name}: kind {rule.kind}{'' if rule.labels else ' without labels'} cannot read the scores of {other!r}; "
                    f"its kinds: {list(kinds)}"
                )
    first = next(iter(settings.rules))
    if settings.judge not in judged_by(settings, found, settings.rules[first]):
        problems.append(
            f"rules.{first}: the first rule is the one that tables and figures show, so it must be for the judge {settings.judge!r}"
        )
    return problems


def digest(path: str, revision: str | None, root: Path) -> str:
    """The digest of a file, folder or hub id, or of a file that an installed package brings along."""
    own = packaged.find(path)
    return fingerprint(own, None, root) if own else fingerprint(path, revision, root)
