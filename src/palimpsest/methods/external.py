"""Images made elsewhere: a closed service, another lab, a model that this project cannot load. A manifest says which image answers
which prompt, and which prompts were refused. Nothing is sampled here, and no service is ever called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from palimpsest.methods.contract import Info
from palimpsest.specs import Strict

if TYPE_CHECKING:
    from palimpsest.sampling.loop import Generation, Request

INFO = Info(
    name="external",
    title="Images made elsewhere",
    stage="external",
    trains="unknown",
    fits=False,
    paper="https://cdn.openai.com/papers/dall-e-3.pdf",
    bibtex="@techreport{betker2023improving, title={Improving Image Generation with Better Captions}, author={Betker, James and "
    "Goh, Gabriel and Jing, Li and Brooks, Tim and Wang, Jianfeng and Li, Linjie and others}, institution={OpenAI}, year={2023}}",
    code="https://platform.openai.com/docs/guides/image-generation",
    licence="terms of whoever made the images",
    fidelity="external",
    architectures=("sd1", "sd2", "sdxl"),
    scope="fixed",
    files=("manifest",),
    folders=("manifest",),
)


class Settings(Strict):
    """Where the images are, and what is done with odd ones."""

    manifest: str = Field(
        description="CSV or Parquet in a folder of its own, with the images in that folder or below it. The folder's contents are part of "
        "every cell's key. Columns: image_id (or source, prompt_id and repetition), suite, file, refused; see docs/methods/external.md."
    )
    partial: Literal["refuse", "allow"] = Field(
        "refuse",
        description="Images that the manifest does not have. refuse: an error. allow: rows without an answer, left out of every rate.",
    )
    aspect: Literal["refuse", "crop", "pad"] = Field(
        "refuse",
        description="Images that are not square. refuse: an error. crop: the square in the middle. pad: black bars.",
    )
    largest_pixels: Annotated[int, Field(ge=1)] = Field(
        64_000_000, description="An image with more pixels is an error: it would fill the memory."
    )

    @field_validator("manifest")
    @classmethod
    def _a_folder_of_its_own(cls, value: str) -> str:
        path = Path(value)
        if path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"{value!r} is neither .csv nor .parquet")
        if path.parent == Path("."):
            raise ValueError(
                f"{value!r} lies in the project's own folder; put it and its images into one of their own, such as data/external/NAME/"
            )
        return value


def produce(
    requests: Sequence[Request], settings: Settings, resolution: int, suite: str
) -> Iterator[Generation]:
    """The images of the manifest, one Generation per request: "provided", "refused", or, when that is allowed, "not_provided".

    Images are decoded to RGB (transparency on white, turned as their EXIF data say), made square as `aspect` says and scaled to the
    resolution. Raises FileNotFoundError without a manifest, ValueError naming rows that are wrong or missing, and images that are broken,
    too large, or lie outside the manifest's folder.
    """
    from palimpsest.methods import _external

    entries = _external.entries(Path(settings.manifest), suite)
    found = _external.answers(entries, requests, Path(settings.manifest), suite, settings.partial == "allow")
    for request, entry in zip(requests, found, strict=True):
        yield _external.generation(request, entry, settings.aspect, settings.largest_pixels, resolution)
