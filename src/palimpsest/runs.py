"""The methods, presets, samplers and variants that an experiment runs, from its settings and the settings files of methods."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.methods import registry
from palimpsest.methods.contract import Info
from palimpsest.params import BadSettings, Params, Sampler

BASE = "sd"
UNERASED = "none"


@dataclass(frozen=True)
class Variant:
    """What a method erases. themes: one, or all; keyword_set: "detailed" | "concise" | "fixed" (nothing to choose);
    images: training images per theme, or 0."""

    theme: str
    themes: tuple[str, ...]
    keyword_set: str
    images: int = 0
    total_images: int = 0

    @property
    def name(self) -> str:
        return UNERASED if self.theme == UNERASED else f"{self.theme}.{self.total_images or self.keyword_set}"


@dataclass(frozen=True)
class NamedFile:
    """A file, folder or hub id that a setting names. counted: what the recipe takes the digest of, which is the whole folder of a
    manifest and the path itself of anything else; stored: where a hub repository may hold it, empty for one that is read whole."""

    setting: str
    path: str
    revision: str | None
    counted: str
    stored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One method with one preset: checked settings and the sampler it generates with.

    title, about: of the settings file; scope, architectures, not_for: of the method's INFO; files: what its settings name.
    """

    method: str
    preset: str
    module: str
    settings: Mapping[str, Any]
    sampler: Sampler
    fits: bool
    needs: tuple[str, ...]
    scope: str = "variants"
    architectures: tuple[str, ...] = ()
    files: tuple[NamedFile, ...] = ()
    title: str = ""
    about: tuple[tuple[str, str], ...] = ()
    not_for: Mapping[str, str] = field(default_factory=dict)


def runs_of(params: Params, folder: Path) -> Iterator[Run]:
    """All runs of an experiment, the base first. folder: of the methods' settings files.

    Raises BadSettings for methods, presets and overrides that do not exist.
    """
    files = registry.settings_files(folder)
    chosen = params.methods
    names = sorted(files) if chosen == "all" else list(chosen)
    for name in (limited.partition("/")[0] for limited in params.variants.only):
        if name not in files:
            raise registry.unknown_method(name, files)
    for name in [BASE, *(n for n in names if n != BASE)]:
        if name not in files:
            raise registry.unknown_method(name, files)
        file = files[name]
        info, module = registry.get(file.method).INFO, registry.module_name(file.method)
        presets = file.run if chosen == "all" or not chosen.get(name) else chosen[name]
        if chosen != "all" and not presets:
            raise BadSettings(
                f"methods.{name}: methods/{name}.yaml runs no preset by itself (run: []); name those to run, of {list(file.presets)}"
            )
        for preset in presets:
            overrides = {**params.overrides.get(name, {}), **params.overrides.get(f"{name}/{preset}", {})}
            settings = registry.settings(name, preset, overrides, files=files).model_dump(mode="json")
            sampler = params.sampler.model_copy(update=file.samplers.get(preset, {}))
            yield Run(
                name, preset, module, settings, sampler, info.fits, tuple(info.needs), info.scope, tuple(info.architectures),
                tuple(_named_files(info, settings)), file.title, tuple(sorted(file.about.items())), dict(info.not_for),
            )  # fmt: skip


def _named_files(info: Info, settings: Mapping[str, Any]) -> Iterator[NamedFile]:
    for setting in info.files:
        path = settings.get(setting)
        if path:
            counted = str(Path(path).parent) if setting in info.folders else path
            stored = tuple(info.stored.get(setting, ()))
            yield NamedFile(setting, path, settings.get(f"{setting}_revision"), counted, stored)


def not_applicable(params: Params, run: Run) -> str | None:
    """Why a method cannot be run on this experiment's model, or None. The base is always run: without it there is nothing to compare."""
    kind = params.model.architecture
    if run.method == BASE or kind in run.architectures:
        return None
    why = f": {run.not_for[kind]}" if kind in run.not_for else ""
    return f"not applicable: {run.method} is defined for {', '.join(run.architectures)}, and model.architecture is {kind}{why}"


def variants_of(params: Params, run: Run) -> list[Variant]:
    """The variants of a method: per theme and keyword set, or per theme and number of training images.

    Raises BadSettings for a pattern of `variants.only` that none of them matches.
    """
    found = _all_variants(params, run)
    only = params.variants.only
    patterns = only.get(f"{run.method}/{run.preset}", only.get(run.method))
    if patterns is None or run.method == BASE:
        return found
    names = [variant.name for variant in found]
    idle = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
    if idle:
        raise BadSettings(f"variants.only.{run.method}: {idle} match none of its variants: {names}")
    return [variant for variant in found if _matches(variant.name, patterns)]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _all_variants(params: Params, run: Run) -> list[Variant]:
    themes, chosen, sizes = tuple(params.themes), params.variants, params.training_images
    if run.method == BASE:
        return [Variant(UNERASED, (), "none")]
    if run.scope == "fixed":
        return [Variant("all", themes, "fixed")]
    found = []
    for theme in chosen.themes:
        covered = themes if theme == "all" else (theme,)
        if run.needs:
            each = [math.ceil(sizes.all / len(themes))] if theme == "all" else sizes.sizes
            totals = [sizes.all] if theme == "all" else sizes.sizes
            found += [
                Variant(theme, covered, "detailed", n, total) for n, total in zip(each, totals, strict=True)
            ]
        else:
            sets = chosen.all_keyword_sets if theme == "all" else chosen.keyword_sets
            found += [Variant(theme, covered, keyword_set) for keyword_set in sets]
    return found


def target_of(params: Params, variant: Variant) -> dict[str, Any]:
    """What a step needs to build a methods.contract.Target; keywords None means: read them from the keywords artifact."""
    themes = []
    for name in variant.themes:
        theme = params.themes[name]
        words: list[str] | None = theme.detailed
        if variant.keyword_set == "concise":
            words = theme.concise if params.keywords.concise == "given" else None
        themes.append({"name": name, "keywords": words, "safe": theme.safe})
    return {"themes": themes, "retain": params.retain}


def suites_for(params: Params, variant: Variant) -> list[str]:
    """The suites a variant is run on: theme-specific ones for that theme, and for "all" unless the suite says otherwise."""
    found = []
    for name, suite in params.suites.items():
        if variant.theme == "all":
            fits = suite.theme is None or (suite.all_themes and suite.theme in variant.themes)
        else:
            fits = suite.theme in (None, variant.theme)
        if fits and (not suite.variants or _matches(variant.name, suite.variants)):
            found.append(name)
    return found


def identity(sampler: Sampler) -> dict[str, Any]:
    """The fields of a sampler that decide its images; `compile` only where it is on, so that it leaves other keys as they were."""
    return sampler.model_dump(exclude={"batch"} if sampler.compile else {"batch", "compile"})


def same(one: Sampler, other: Sampler) -> bool:
    """Whether two samplers make the same images."""
    return identity(one) == identity(other)


def base_preset(params: Params, sampler: Sampler) -> str:
    """The preset name of the unerased model under a sampler: every method is compared with a sampler-matched baseline."""
    if same(sampler, params.sampler):
        return "default"
    return f"{sampler.name.replace('+', 'p')}_{sampler.steps}_g{sampler.guidance:g}_{sampler.dtype}{'_compiled' if sampler.compile else ''}"


def run_row(params: Params, run: Run, variant: Variant) -> dict[str, Any]:
    """What the aggregation must know of a method and variant to fill its table."""
    return {
        "method": run.method,
        "preset": run.preset,
        "variant": variant.name,
        "theme": variant.theme,
        "themes": list(variant.themes),
        "keyword_set": variant.keyword_set,
        "training_images": variant.total_images,
        "base": base_preset(params, run.sampler),
        "suites": suites_for(params, variant),
    }
