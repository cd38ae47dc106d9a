"""Exact masks: pictures of the micro world that were drawn with a keyword, and the pixels that the keyword changed.

Nothing is segmented. The file (`python -m palimpsest.world.masks`) holds renders with their masks; the first rows of a theme that show
one of its keywords are what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from palimpsest.segmenters.contract import Asked, Info, Masked, Picture
from palimpsest.specs import Strict

INFO = Info(
    name="scenes",
    title="Exact masks of renders",
    bibtex=(),
    code="palimpsest.world.masks",
    licence="that of this project",
    reads="file",
    files=("path",),
)


class Settings(Strict):
    """path: a Parquet file with image and mask (PNG), keyword, theme and prompt."""

    path: str = Field(description="The file of pictures and masks.")


def problems(settings: Settings, wanted: Sequence[Asked], root: Path) -> list[str]:
    """Themes and keywords that the file does not show, and sets larger than it holds. A file that is not there is found before a run."""
    import pyarrow.parquet as pq

    path = root / settings.path
    if not path.is_file():
        return []
    # not pq.read_table, which imports a data frame library first: this is asked for every plan
    with pq.ParquetFile(path) as file:
        columns = file.read(columns=["theme", "keyword"]).to_pydict()
    shown = list(zip(columns["theme"], columns["keyword"], strict=True))
    found = []
    for asked in wanted:
        own = [keyword for theme, keyword in shown if theme == asked.theme and keyword in asked.keywords]
        missing = [keyword for keyword in asked.keywords if keyword not in own]
        if asked.stop and missing:
            known = sorted(set(columns["keyword"]))
            found.append(
                f"{settings.path} has no pictures of {missing} of theme {asked.theme!r}; it has {known}"
            )
        elif asked.stop > len(own):
            found.append(
                f"{settings.path} holds {len(own)} pictures of theme {asked.theme!r}, and {asked.stop} are asked for; lower "
                f"training_images.sizes and training_images.all, or write a larger file with "
                f"`python -m palimpsest.world.masks --per-theme {asked.stop} --out {settings.path}`"
            )
    return found


def masked(settings: Settings, asked: Asked, pictures: Sequence[Picture]) -> Iterator[Masked]:
    """The rows of the file. Raises ValueError when it has too few."""
    from palimpsest import store

    frame = store.read_parquet(settings.path)
    rows = [
        row
        for row in frame.iter_rows(named=True)
        if row["theme"] == asked.theme and row["keyword"] in asked.keywords
    ]
    if len(rows) < asked.stop:
        raise ValueError(
            f"{settings.path} holds {len(rows)} pictures of theme {asked.theme!r}, and {asked.stop} are asked for"
        )
    for row in rows[asked.start : asked.stop]:
        image, mask = (store.decode_png(row[name]["bytes"]) for name in ("image", "mask"))
        yield Masked(Picture(image, row["prompt"], row["keyword"]), mask[..., 0] > 127, True)
