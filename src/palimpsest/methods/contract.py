"""What an erasure method is: a module of this package that defines `INFO`, `Settings`, `fit` and `apply`.

A method module is found by its name, never registered. At import it must not load torch or diffusers: the plan of an experiment
is built from the metadata of every method, and that has to stay fast. `tests/contract` holds every method to this page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from palimpsest.sampling.loop import Generation, Request
    from palimpsest.sampling.pipeline import Pipeline

Stage = Literal[
    "none",
    "fine-tuning",
    "closed form",
    "inference guidance",
    "data filtering",
    "post-hoc filter",
    "external",
]
Need = Literal["target_images", "safe_images", "masked_images"]
Scope = Literal["variants", "fixed"]
Fidelity = Literal["reimplemented from code", "reimplemented from paper", "reconstructed", "external"]


@dataclass(frozen=True)
class Info:
    """Metadata of a method, shown in reports and `palimpsest cite`.

    fits: whether `fit` has to run (a post-hoc method has no artifact). needs: image sets that `fit` reads.
    architectures: checkpoint layouts the mathematics holds for ("sd1", "sd2", "sdxl"); with any other a cell is declared not applicable.
    not_for: why it does not hold for the others, by layout; reports say so.
    scope: "fixed" for what cannot be aimed at a theme (another checkpoint, a filter, images of a closed service): it has one variant.
    files: settings that name a file, folder or hub id whose contents decide the result; "<name>_revision" may pin a hub id.
    folders: those of them that name a file whose whole folder decides the result (a manifest beside its images).
    stored: for a setting of `files`, where a hub repository may hold its weights, any of which will do; only that is fetched of it.
    """

    name: str
    title: str
    stage: Stage
    trains: str
    fits: bool
    paper: str
    bibtex: str
    code: str
    licence: str
    fidelity: Fidelity
    needs: tuple[Need, ...] = ()
    architectures: tuple[str, ...] = ("sd1",)
    scope: Scope = "variants"
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    not_for: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ThemeTarget:
    """One theme to erase: its keywords (in the keyword set of the variant) and the surrogate that takes their place."""

    name: str
    keywords: tuple[str, ...]
    safe: str


@dataclass(frozen=True)
class Target:
    """What a variant erases: one theme, or several (variant "all").

    retain: benign prompts a method may hold fixed (AU, MACE, UCE with a preserve list).
    """

    themes: tuple[ThemeTarget, ...]
    retain: tuple[str, ...] = ()

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords of all themes, in order, without repeats."""
        return tuple(dict.fromkeys(word for theme in self.themes for word in theme.keywords))

    @property
    def text(self) -> str:
        """All keywords as one prompt, joined by comma and space (the benchmark paper's form)."""
        return ", ".join(self.keywords)


@dataclass(frozen=True)
class ImageSet:
    """Training images of one theme and role: uint8 [N, H, W, 3] with the prompt each was made from.

    masks: bool [N, H, W], true where the concept is seen, for role "masked_images" only; keywords: the one each image shows.
    """

    theme: str
    role: Need
    images: np.ndarray
    prompts: tuple[str, ...]
    masks: np.ndarray | None = None
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingData:
    """The image sets a method asked for, one per theme and role."""

    sets: tuple[ImageSet, ...] = ()

    def role(self, role: Need) -> list[ImageSet]:
        """All sets of one role. Raises ValueError when the plan provided none."""
        found = [s for s in self.sets if s.role == role]
        if not found:
            raise ValueError(f"no {role} were given; the method must list {role!r} in INFO.needs")
        return found


@dataclass(frozen=True)
class Artifact:
    """What fitting leaves behind: tensors (name -> CPU tensor) and a JSON-able description."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """The module-level names of a method. `Settings` holds every knob, quirks of the official code included."""

    INFO: Info
    Settings: type[BaseModel]

    def fit(
        self, pipeline: Pipeline, target: Target, data: TrainingData, settings: Any, seed: int
    ) -> Artifact:
        """Fit on the frozen base pipeline, which stays as it is; everything random follows `seed`."""
        ...

    def apply(self, pipeline: Pipeline, artifact: Artifact, target: Target, settings: Any) -> Pipeline:
        """The pipeline with the method in it; the given pipeline keeps giving the images it gave before."""
        ...


class Source(Protocol):
    """A method that has images of its own instead of changing a pipeline defines `produce` in place of `fit` and `apply`."""

    INFO: Info
    Settings: type[BaseModel]

    def produce(
        self, requests: Sequence[Request], settings: Any, resolution: int, suite: str
    ) -> Iterator[Generation]:
        """One Generation per request of the suite, in order; images uint8 [resolution, resolution, 3], or None with a reason."""
        ...


def keyword_prompts(target: Target, mode: Literal["joint", "sample"]) -> Sequence[str]:
    """The prompts that stand for the concept: one comma-joined prompt, or one per keyword."""
    return [target.text] if mode == "joint" else list(target.keywords)
