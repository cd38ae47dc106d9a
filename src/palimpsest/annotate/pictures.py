"""Images to label: found in artifacts, in a folder or in a manifest, and copied into the store.

Everything is decoded and written again as PNG, so what the page shows holds no text of the original file (the prompt and the method often
stand in it), and is no file that somebody made up to be two things at once. An image's name in the store is the digest of its pixels: names
from outside are only ever remembered, never used as a path.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.annotate.board import Place

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.cells import Cell
    from palimpsest.plan.build import Plan

FORMATS = ("PNG", "JPEG", "WEBP")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
LARGEST_FILE = 64 << 20
LARGEST_PIXELS = 50_000_000
LONGEST_NAME = 500
Found = tuple["np.ndarray", Place]


class NoPictures(ValueError):
    """Nothing to label, or something that cannot be; the message says what."""


def digest_of(image: np.ndarray) -> str:
    """SHA-256 of the size and the pixels of a uint8 [H, W, 3] image: equal pictures are labelled once, wherever they were met."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def keep(image: np.ndarray, folder: Path) -> str:
    """Put an image into the store and return its digest."""
    from palimpsest import store

    digest = digest_of(image)
    path = folder / f"{digest}.png"
    if not path.exists():
        with store.atomic(path) as part:
            part.write_bytes(store.encode_png(image))
    return digest


def chosen(plan: Plan, methods: Sequence[str], suites: Sequence[str], places: Sequence[str]) -> list[Cell]:
    """The generations of a plan that are asked for, and are here. methods, suites: names; places: patterns such as
    `uce/*/glitch.*/nsfw/*`. Without any: the base model's images of every suite.

    Raises NoPictures naming what exists.
    """
    from palimpsest.runs import BASE

    made = [cell for cell in plan.cells.values() if cell.step == "generate"]
    if not methods and not places:
        methods = [BASE]
    asked = [
        cell
        for cell in made
        if (not methods or cell.where["method"] in methods)
        and (not suites or cell.where["suite"] in suites)
        and (not places or any(fnmatchcase(cell.place, pattern) for pattern in places))
    ]
    if not asked:
        raise NoPictures(
            f"no generations of this experiment match; methods: {sorted({c.where['method'] for c in made})}, suites: "
            f"{sorted({c.where['suite'] for c in made})}, places such as {made[0].place!r}"
        )
    here = [cell for cell in asked if (plan.root / cell.path).is_file()]
    if not here:
        raise NoPictures(
            f"none of the {len(asked)} generations asked for is here, the first would be {asked[0].path}; "
            "run `snakemake`, or `dvc pull` the folder"
        )
    return here


def of_cells(root: Path, cells: Iterable[Cell], count: int | None = None) -> Iterator[Found]:
    """The images of artifacts. count: at most so many per artifact, the same prompts and seeds of all methods, picked by a hash."""
    from palimpsest import store

    for cell in cells:
        frame = store.read_parquet(root / cell.path, ["image_id", "image"])
        rows = [row for row in frame.iter_rows() if row[1] is not None and row[1]["bytes"] is not None]
        if count is not None:
            rows = sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).digest())[:count]
        for image_id, image in rows:
            yield store.decode_png(image["bytes"]), Place(cell.key, cell.place, image_id)


def of_folder(folder: Path) -> Iterator[Found]:
    """The images below a folder. Links that lead out of it are refused."""
    if not folder.is_dir():
        raise NoPictures(f"{folder} is no folder")
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS):
        yield decoded(_inside(path, folder)), Place("", folder.name, _named(path.relative_to(folder)))


def of_manifest(manifest: Path) -> Iterator[Found]:
    """The images that a CSV names in its column `file`, relative to where it lies; column `image_id` names them where there is one."""
    try:
        rows = list(csv.DictReader(io.StringIO(manifest.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError) as error:
        raise NoPictures(f"{manifest} cannot be read: {error}") from error
    if not rows or "file" not in rows[0]:
        raise NoPictures(
            f"{manifest}: no rows with a column file; found {sorted(map(str, rows[0])) if rows else []}"
        )
    for row in rows:
        if row["file"]:
            path = _inside(manifest.parent / row["file"], manifest.parent)
            yield decoded(path), Place("", manifest.name, _named(row.get("image_id") or row["file"]))


def _named(name: object) -> str:
    return str(name)[:LONGEST_NAME].encode("utf-8", "replace").decode()


def _inside(path: Path, folder: Path) -> Path:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise NoPictures(f"{str(path)!r} leads out of {folder}; only files below it are read")
    if not path.is_file():
        raise NoPictures(f"there is no file {str(path)!r}")
    return path


def decoded(path: Path) -> np.ndarray:
    """An image file as uint8 [H, W, 3], upright, on white where it is transparent. Raises NoPictures naming the file and what is wrong."""
    import numpy as np
    from PIL import Image, ImageOps

    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise NoPictures(f"{str(path)!r} has {size >> 20} MiB; at most {LARGEST_FILE >> 20} are read")
    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > LARGEST_PIXELS:
                raise NoPictures(f"{str(path)!r} has {width} x {height} pixels; at most {LARGEST_PIXELS}")
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except NoPictures:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise NoPictures(
            f"{str(path)!r} is no image that can be read ({error}); allowed: {', '.join(FORMATS)}"
        ) from error
    white = Image.new("RGBA", upright.size, "white")
    return np.asarray(Image.alpha_composite(white, upright).convert("RGB"))
