"""Which methods there are, and their settings files. Methods are found by file, never registered; torch is
not imported here.

A module of this package that assigns `INFO` at its top level is a method. Others may bring methods through
the entry-point group `palimpsest.methods` (name = "package.module"). Only the module that is asked for is
imported.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from palimpsest.declarations import plugins
from palimpsest.params import BadSettings, Name, Sampler, Strict, problems_of, read_yaml

PACKAGE = "palimpsest.methods"
MEMBERS = ("INFO", "Settings", "fit", "apply")
SOURCE_MEMBERS = ("INFO", "Settings", "produce")


class MethodFile(Strict):
    """A settings file of a method, `methods/<name>.yaml`. Several files may share a module.

    method: its module. run: the presets that experiments run when they name none; empty for what an experiment has to ask for by name.
    samplers: preset -> fields of `sampler` that it needs to differ from the experiment's. about: what takes the place of the
    module's own paper, code, licence and BibTeX entry in reports.
    """

    method: Name
    title: str
    about: dict[Literal["paper", "code", "licence", "bibtex"], str] = Field(default_factory=dict)
    presets: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    run: list[str]
    samplers: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _presets_exist(self) -> MethodFile:
        problems = [
            f"run: {p!r} is no preset; allowed: {list(self.presets)}"
            for p in self.run
            if p not in self.presets
        ]
        for preset, fields in self.samplers.items():
            if preset not in self.presets:
                problems.append(f"samplers: {preset!r} is no preset; allowed: {list(self.presets)}")
            problems += _sampler_problems(preset, fields)
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _sampler_problems(preset: str, fields: Mapping[str, Any]) -> list[str]:
    """Problems of a partial sampler: its fields are tried on a valid one."""
    try:
        Sampler.model_validate({"name": "ddim", "steps": 1, "guidance": 1.0, **fields})
    except ValidationError as error:
        return problems_of(error, f"samplers.{preset}", {"": list(Sampler.model_fields)})
    return []


@lru_cache(maxsize=1)
def _modules() -> Mapping[str, str]:
    """Method name -> dotted module: the files of this package first, then entry points."""
    found = {name: f"{PACKAGE}.{name}" for name in plugins(Path(__file__).parent, "INFO")}
    for point in entry_points(group=PACKAGE):
        found.setdefault(point.name, point.value.partition(":")[0])
    return dict(sorted(found.items()))


def names() -> list[str]:
    """The names of all methods, sorted."""
    return list(_modules())


def unknown_method(name: str, known: Iterable[str]) -> BadSettings:
    """The error for a method nobody knows, with the nearest name."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return BadSettings(
        f"no method {name!r}.{hint} Known methods: {', '.join(known)}. `palimpsest new-method {name}` "
        f"starts a new one."
    )


def module_name(method: str) -> str:
    """The dotted name of a method's module, which is not imported. Raises BadSettings for an unknown
    method.
    """
    if method not in _modules():
        raise unknown_method(method, _modules())
    return _modules()[method]


def get(method: str) -> ModuleType:
    """The module of a method. Raises BadSettings for an unknown method, TypeError for a module that lacks a
    part of the contract.
    """
    module = importlib.import_module(module_name(method))
    members = SOURCE_MEMBERS if hasattr(module, "produce") else MEMBERS
    missing = [member for member in members if not hasattr(module, member)]
    if missing:
        raise TypeError(
            f"{module.__name__} is no method: it lacks {', '.join(missing)} (see "
            f"palimpsest/methods/contract.py)"
        )
    return module


def settings_files(folder: str | Path) -> dict[str, MethodFile]:
    """All settings files of a folder by file name without suffix, which is the name a method has in
    experiments.

    Presets are checked against their method's Settings. Raises BadSettings with the problems of all files at
    once.
    """
    found: dict[str, MethodFile] = {}
    problems: list[str] = []
    for path in sorted(Path(folder).glob("*.yaml")):
        file, wrong = _read(path)
        problems += wrong
        if file is not None:
            found[path.stem] = file
    if problems:
        raise BadSettings("\n".join([f"{len(problems)} problem(s) in the settings of methods:", *problems]))
    if not found:
        raise BadSettings(f"{folder}: there are no settings files of methods (*.yaml)")
    return found


def _read(path: Path) -> tuple[MethodFile | None, list[str]]:
    try:
        file = MethodFile.model_validate(read_yaml(path))
    except BadSettings as error:
        return None, [str(error)]
    except ValidationError as error:
        return None, problems_of(error, str(path), {"": list(MethodFile.model_fields)})
    problems: list[str] = []
    for preset in file.presets:
        try:
            _validated(file, preset, {}, f"{path}: presets.{preset}")
        except BadSettings as error:
            problems += str(error).splitlines()
    return file, list(dict.fromkeys(problems))


def _validated(file: MethodFile, preset: str, overrides: Mapping[str, Any], where: str) -> BaseModel:
    kind = get(file.method).Settings
    try:
        return kind.model_validate({**file.presets[preset], **overrides})
    except ValidationError as error:
        raise BadSettings("\n".join(problems_of(error, where, {"": list(kind.model_fields)}))) from error


def settings(
    name: str,
    preset: str,
    overrides: Mapping[str, Any] | None = None,
    files: Mapping[str, MethodFile] | None = None,
    folder: str | Path = "methods",
) -> Any:
    """The checked Settings of a preset with `overrides` laid over it.

    files: what `settings_files` gave; without it only `<folder>/<name>.yaml` is read. Raises BadSettings for
    an unknown method or preset and for overrides that Settings does not take.
    """
    if files is None:
        path = Path(folder) / f"{name}.yaml"
        if not path.is_file():
            raise unknown_method(name, (p.stem for p in Path(folder).glob("*.yaml")))
        file, problems = _read(path)
        if file is None or problems:
            raise BadSettings("\n".join(problems))
        files = {name: file}
    if name not in files:
        raise unknown_method(name, files)
    if preset not in files[name].presets:
        near = difflib.get_close_matches(preset, files[name].presets, 1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        raise BadSettings(f"methods.{name}: no preset {preset!r};{hint} allowed: {list(files[name].presets)}")
    return _validated(files[name], preset, overrides or {}, f"overrides.{name} on preset {preset}")
