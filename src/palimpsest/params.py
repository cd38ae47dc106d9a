"""The settings of an experiment, checked whole before anything runs.

`load` reads `params.yaml` and any overlays and either returns a `Params` or raises `BadSettings` with every problem at once: file, key,
value and what is allowed. Settings blocks are in specs.py; nothing else of the project is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from palimpsest.quality_specs import Quality
from palimpsest.specs import (
    Detector,
    Masks,
    Model,
    Name,
    PromptFormat,
    Rule,
    Sampler,
    SamplerName,
    Source,
    Statistics,
    Strict,
    Suite,
)

__all__ = [
    "BadSettings", "Classifiers",
    "Detector", "Downloads", "Keywords", "Masks", "Model", "Name", "Params", "PromptFormat", "Quality", "Report", "Rule", "Sampler",
    "SamplerName", "Source", "Statistics", "Strict", "Suite", "Theme", "TrainingImages", "Variants", "load", "merge", "parse",
    "problems_of", "read_yaml",
]  # fmt: skip

# The parser in C, where PyYAML has it, is ten times as fast and reads the same.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BadSettings(ValueError):
    """Settings that cannot be used; the message lists every problem."""


class Theme(Strict):
    """A theme to erase. detailed: its keywords, the theme word first; safe: the surrogate that takes its place;
    concise: a given concise set, used only when `keywords.concise` is "given"."""

    detailed: Annotated[list[str], Field(min_length=1)]
    safe: str
    concise: list[str] = []

    @model_validator(mode="after")
    def _concise_is_part(self) -> Theme:
        odd = [word for word in self.concise if word not in self.detailed]
        if odd:
            raise ValueError(f"concise keywords {odd} are not among the detailed ones {self.detailed}")
        return self


class Keywords(Strict):
    """How concise keyword sets come about: "derived" by cross-suppression, or "given" per theme.
    seeds: images per keyword prompt; threshold: least suppression (in percent) that counts as covering."""

    concise: Literal["derived", "given"] = "derived"
    template: str = "{}"
    seeds: Annotated[int, Field(ge=1)] = 10
    threshold: Annotated[float, Field(ge=0, le=100)] = 50.0


class TrainingImages(Strict):
    """Sizes of the training sets per theme, and for all themes together; templates: prompts with {} for the keyword or surrogate."""

    sizes: list[Annotated[int, Field(ge=1)]]
    all: Annotated[int, Field(ge=1)]
    templates: Annotated[list[str], Field(min_length=1)] = ["{}"]
    sampler: Sampler


class Variants(Strict):
    """Which variants are run: themes (and "all"), keyword sets for text-only methods.

    only: method, or method/preset -> patterns of the variants it is run on, where that is not all of them ("all.*", "*.200").
    """

    themes: list[str]
    keyword_sets: list[Literal["detailed", "concise"]]
    all_keyword_sets: list[Literal["detailed", "concise"]]
    only: dict[str, list[str]] = {}


class Classifiers(Strict):
    """How detectors are held against labels. renders: held-out pictures of the micro world, whose labels are exact, that every detector
    judges; 0: none. What people labelled is read from `data/labels/<experiment>/` besides."""

    renders: Annotated[int, Field(ge=0)] = 0


class Downloads(Strict):
    """How `palimpsest download` reaches the hub; runs never do. offline: not at all, as HF_HUB_OFFLINE=1; tries: how often it is tried
    again after a break."""

    offline: bool = False
    tries: Annotated[int, Field(ge=0)] = 8


class Report(Strict):
    """blur: whether images are blurred until clicked (always on for real suites); pairs: image pairs per method and theme; thumbnails:
    small copies per variant and suite, of as many images, which the pages behind the tables show; dataset: repository of the Hugging Face
    Hub (owner/name) that result cards name as the benchmark.
    """

    blur: bool = True
    pairs: Annotated[int, Field(ge=0)] = 4
    thumbnails: Annotated[int, Field(ge=0)] = 200
    dataset: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$")] = ""
    title: str = ""


class Params(Strict):
    """The settings of one experiment."""

    experiment: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    model: Model
    sampler: Sampler
    themes: Annotated[dict[str, Theme], Field(min_length=1)]
    variants: Variants
    suites: Annotated[dict[str, Suite], Field(min_length=1)]
    keywords: Keywords = Keywords()
    training_images: TrainingImages
    masks: Masks | None = None
    retain: list[str] = []
    methods: Literal["all"] | dict[str, list[str]] = "all"
    overrides: dict[str, dict[str, Any]] = {}
    detectors: Annotated[dict[str, Detector], Field(min_length=1)]
    judge: str
    rules: Annotated[dict[str, Rule], Field(min_length=1)]
    statistics: Statistics = Statistics()
    classifiers: Classifiers = Classifiers()
    downloads: Downloads = Downloads()
    report: Report = Report()
    quality: Quality = Quality()
    gates: dict[str, Any] = {}

    @model_validator(mode="after")
    def _names_exist(self) -> Params:
        problems = []
        allowed = [*self.themes, "all"]
        problems += [
            f"variants.themes: {t!r} is no theme; allowed: {allowed}"
            for t in self.variants.themes
            if t not in allowed
        ]
        for name, suite in self.suites.items():
            if suite.theme and suite.theme not in self.themes:
                problems.append(
                    f"suites.{name}.theme: {suite.theme!r} is no theme; allowed: {list(self.themes)}"
                )
        if self.judge not in self.detectors:
            problems.append(f"judge: {self.judge!r} is no detector; allowed: {list(self.detectors)}")
        for name, rule in self.rules.items():
            problems += _rule_problems(name, rule, list(self.themes), list(self.detectors))
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _rule_problems(name: str, rule: Rule, themes: list[str], detectors: list[str]) -> list[str]:
    """Themes and detectors that a rule names and that do not exist."""
    named = [("texts", t) for t in rule.texts] + [("thresholds", t) for t in rule.thresholds]
    named += [("labels", t) for t in rule.labels if t != "any"]
    problems = [
        f"rules.{name}.{where}: {t!r} is no theme; allowed: {themes}" for where, t in named if t not in themes
    ]
    if rule.kind == "calibrated" and (lacking := [t for t in themes if t not in rule.thresholds]):
        problems.append(f"rules.{name}.thresholds: themes {lacking} have none")
    return problems + [
        f"rules.{name}.detectors: {d!r} is no detector; allowed: {detectors}"
        for d in rule.detectors
        if d not in detectors
    ]


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `overlay` over `base`: mappings are merged key by key, anything else is replaced; a value of None removes the key."""
    merged = dict(base)
    for key, value in overlay.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping. Raises BadSettings naming file and line when it is none."""
    path = Path(path)
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except FileNotFoundError:
        raise BadSettings(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(value, dict):
        raise BadSettings(f"{path}: expected a mapping of settings, found {type(value).__name__}")
    return value


def problems_of(
    error: ValidationError, where: str, allowed: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """One line per problem: file, key, value, what is allowed."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        value = item.get("input")
        shown = "" if isinstance(value, dict | list) else f" (value: {value!r})"
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = list((allowed or {}).get(key.rpartition(".")[0], ()))
            near = difflib.get_close_matches(key.rpartition(".")[2], known, 1)
            text = (
                "unknown key"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + (f" allowed: {known}" if known else "")
            )
        lines.append(f"{where}: {key or '(whole file)'}: {text}{shown}")
    return lines


def _known_keys(model: type[BaseModel], prefix: str = "") -> dict[str, list[str]]:
    keys = {prefix: list(model.model_fields)}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys |= _known_keys(info.annotation, f"{prefix}.{name}".strip("."))
    return keys


def parse(settings: Mapping[str, Any], where: str = "params.yaml") -> Params:
    """Check settings that were already read. Raises BadSettings with every problem."""
    try:
        return Params.model_validate(settings)
    except ValidationError as error:
        lines = problems_of(error, where, _known_keys(Params))
        raise BadSettings("\n".join([f"{len(lines)} problem(s) in the settings:", *lines])) from error


def load(*paths: str | Path) -> Params:
    """Read `params.yaml` and overlays, later ones over earlier ones. Raises BadSettings with every problem.

    An overlay may name sections that it `replaces` as a whole; all others are merged key by key.
    """
    settings: dict[str, Any] = {}
    for path in paths:
        overlay = read_yaml(path)
        replaced = overlay.pop("replaces", [])
        settings = merge({key: value for key, value in settings.items() if key not in replaced}, overlay)
    return parse(settings, where=" + ".join(str(path) for path in paths))
