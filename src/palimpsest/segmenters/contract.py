"""What a segmenter is: a module of this package that defines `INFO`, `Settings`, `problems` and `masked`.

It makes the training images of role "masked_images": pictures that show a keyword, each with a mask of where it is seen. A segmenter is
found by its file name, never registered, and loads weights (and torch) only when `masked` is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from pydantic import BaseModel

from palimpsest.declarations import declares, plugins

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Info:
    """Metadata of a segmenter. bibtex: an entry for each network.

    reads: "target_images", which the unerased model makes of the keywords, or "file" when it brings its own pictures.
    files: settings that name weights or a file which decide the result; "<name>_revision" may pin a hub id.
    """

    name: str
    title: str
    bibtex: tuple[str, ...]
    code: str
    licence: str
    reads: Literal["target_images", "file"]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """Which masked images are asked for: number `start` to `stop` of a theme with these keywords; none when `stop` is 0."""

    theme: str
    keywords: tuple[str, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Picture:
    """A picture uint8 [H, W, 3], the prompt it was made from and the keyword it shall show."""

    image: np.ndarray
    prompt: str
    keyword: str


@dataclass(frozen=True)
class Masked:
    """A picture with its mask bool [H, W]. found: false when nothing was seen, in which case the mask is true everywhere."""

    picture: Picture
    mask: np.ndarray
    found: bool


class Segmenter(Protocol):
    """The module-level names of a segmenter."""

    INFO: Info
    Settings: type[BaseModel]

    def problems(self, settings: Any, wanted: Sequence[Asked], root: Path) -> list[str]:
        """What cannot work, one line each, told from settings and files alone. wanted: one for every theme of the experiment."""
        ...

    def masked(self, settings: Any, asked: Asked, pictures: Sequence[Picture]) -> Iterator[Masked]:
        """One row per image asked for, in order. pictures: those images, when INFO.reads is "target_images"."""
        ...


def names() -> list[str]:
    """The segmenters that exist: files of this package that assign `INFO`. Imports none of them."""
    return plugins(Path(__file__).parent, "INFO")


def find(kind: str) -> Segmenter:
    """The segmenter module of a name. Raises ValueError with the names that exist."""
    if not declares(Path(__file__).with_name(f"{kind}.py"), "INFO"):
        raise ValueError(f"masks: kind {kind!r} does not exist; allowed: {names()}")
    return cast(Segmenter, importlib.import_module(f"palimpsest.segmenters.{kind}"))
