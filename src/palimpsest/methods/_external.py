"""Reading a manifest of images made elsewhere. Everything in it is taken to be hostile: paths, sizes, formats, keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.sampling.loop import Generation, Request

PARTS = ("source", "prompt_id", "repetition")
COLUMNS = ("suite", "image_id", *PARTS, "file", "refused", "prompt_sha256", "revised_prompt")
FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_FILE = 256 << 20
SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One row of a manifest. number: its line in a CSV, the header being line 1. file: None where the image was refused or not given."""

    number: int
    file: Path | None
    refused: str = ""
    digest: str = ""
    revised: str = ""


def entries(manifest: Path, suite: str) -> dict[str, Entry]:
    """The rows of one suite by image id. A row with neither file nor refusal has not been filled in, and is left out.

    Raises FileNotFoundError when the manifest is not there, ValueError listing everything that is wrong with it.
    """
    rows = _rows(manifest)
    columns = set(rows[0]) if rows else set()
    problems: list[str] = []
    if rows and not ("image_id" in columns or set(PARTS) <= columns):
        raise ValueError(
            f"{manifest}: no column image_id, nor {', '.join(PARTS)}; found {sorted(columns)}. `palimpsest external-template` writes a "
            "manifest to fill in"
        )
    if rows and not columns & {"file", "refused"}:
        raise ValueError(f"{manifest}: neither a column file nor a column refused; found {sorted(columns)}")
    found: dict[str, Entry] = {}
    for number, row in enumerate(rows, 2):
        if (row.get("suite") or suite) != suite:
            continue
        try:
            key, entry = _identity(row), _entry(number, row, manifest.parent)
        except ValueError as error:
            problems.append(f"row {number}: {error}")
            continue
        if key in found:
            problems.append(f"row {number}: {key!r} stands in row {found[key].number} already")
        elif entry.file is not None or entry.refused:
            found[key] = entry
    if problems:
        raise ValueError(f"{manifest}: {_listed(problems, 'problem')}")
    return found


def answers(
    found: Mapping[str, Entry], requests: Sequence[Request], manifest: Path, suite: str, partial: bool
) -> list[Entry | None]:
    """The row of every request, None where there is none. Raises ValueError when one is missing that has to be there, was made for another
    prompt, or names no file."""
    missing, wrong = [], []
    for request in requests:
        entry = found.get(request.image_id)
        if entry is None:
            missing.append(repr(request.image_id))
        elif entry.digest and entry.digest != sha256(request.prompt):
            wrong.append(f"row {entry.number}: {request.image_id!r} was made for another prompt")
        elif entry.file is not None and not entry.file.is_file():
            wrong.append(f"row {entry.number}: there is no file {entry.file}")
    if missing and not partial:
        wrong.append(
            f"{len(missing)} of {len(requests)} images of suite {suite!r} are not in it, first {', '.join(missing[:SHOWN])}. Add them (a "
            "refused prompt is a row with a reason in `refused`), or set `partial: allow`, which leaves them out of every rate"
        )
    if wrong:
        raise ValueError(f"{manifest}: {_listed(wrong, 'problem')}")
    return [found.get(request.image_id) for request in requests]


def generation(
    request: Request, entry: Entry | None, aspect: str, largest: int, resolution: int
) -> Generation:
    """What became of a request, with its image where there is one."""
    from palimpsest.sampling.loop import Generation

    image = None
    if entry is None:
        decision, reason = "not_provided", "not in the manifest"
    elif entry.file is None:
        decision, reason = "refused", entry.refused
    else:
        decision, reason = "provided", f"asked as: {entry.revised}" if entry.revised else ""
        try:
            image = picture(entry.file, aspect, largest, resolution)
        except ValueError as error:
            raise ValueError(f"row {entry.number} of the manifest, {request.image_id!r}: {error}") from error
    return Generation(request.image_id, request.prompt, request.seed, decision, reason, image, None, 0.0)  # type: ignore[arg-type]


def picture(path: Path, aspect: str, largest: int, resolution: int) -> np.ndarray:
    """An image file as uint8 [resolution, resolution, 3]. Raises ValueError naming the file and what is wrong with it."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    from palimpsest.sampling.frames import fitted

    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} has {path.stat().st_size / 2**20:.0f} MiB; at most {LARGEST_FILE >> 20}")
    image = None
    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height <= largest:
                image = _on_white(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image; allowed: {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise ValueError(f"{path} cannot be read as an image ({error}); make the file again") from error
    if image is None:
        raise ValueError(f"{path} has {width} x {height} pixels; largest_pixels is {largest}")
    return fitted(np.asarray(_square(image, aspect, path)), resolution)


def _on_white(image: Any) -> Any:
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha).convert("RGB")
    return image.convert("RGB")


def _square(image: Any, aspect: str, path: Path) -> Any:
    from PIL import ImageOps

    width, height = image.size
    if width == height:
        return image
    if aspect == "refuse":
        raise ValueError(
            f"{path} is not square ({width} x {height}); set `aspect: crop` or `aspect: pad`, or make square images"
        )
    if aspect == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    return ImageOps.pad(image, (max(width, height),) * 2, color="black")


def _rows(manifest: Path) -> list[dict[str, str]]:
    """The rows with every cell as text; empty cells are empty strings."""
    import polars as pl

    if not manifest.is_file():
        raise FileNotFoundError(
            f"manifest: there is no {manifest}. `palimpsest external-template` writes one to fill in"
        )
    try:
        if manifest.suffix == ".parquet":
            frame = pl.read_parquet(manifest)
        else:
            frame = pl.read_csv(manifest, infer_schema=False)
        known = [name for name in COLUMNS if name in frame.columns]
        frame = frame.select(pl.col(known).cast(pl.String).fill_null("").str.strip_chars())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(
            f"{manifest} cannot be read as a table ({error}); save it as CSV in UTF-8, with commas, or as Parquet"
        ) from error
    return frame.to_dicts()


def _identity(row: Mapping[str, str]) -> str:
    """The image id of a row: as it stands there, or put together as the prompt tables do."""
    if row.get("image_id"):
        return row["image_id"]
    source, *numbers = (row.get(name, "") for name in PARTS)
    if not source or not all(n.isascii() and n.isdigit() for n in numbers):
        raise ValueError(
            f"no image_id, and {', '.join(PARTS)} are {[source, *numbers]}; prompt_id and repetition are whole numbers"
        )
    return f"{source}/{int(numbers[0]):05d}/{int(numbers[1]):02d}"


def _entry(number: int, row: Mapping[str, str], folder: Path) -> Entry:
    name, refused = row.get("file", ""), row.get("refused", "")
    refused = "" if refused.lower() in ("false", "no", "0") else refused
    if name and refused:
        raise ValueError(f"it has a file ({name!r}) and a refusal ({refused!r}); leave one of them empty")
    path = inside(folder, name) if name else None
    return Entry(number, path, refused, row.get("prompt_sha256", "").lower(), row.get("revised_prompt", ""))


def inside(folder: Path, name: str) -> Path:
    """The file of that name in or below a folder. Raises ValueError for absolute paths and for those that lead out, also over a link."""
    if "\0" in name or "\\" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(
            f"file {name!r} does not stay in {folder}; give the path from there, with / and without .."
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"file {name!r} is a link that leads out of {folder}; put the image itself there")
    return path


def sha256(prompt: str) -> str:
    """Digest of a prompt's UTF-8 bytes, as the prompt tables have it."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def _listed(problems: Sequence[str], noun: str) -> str:
    more = f" ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return f"{len(problems)} {noun}(s): {'; '.join(problems[:SHOWN])}{more}"
