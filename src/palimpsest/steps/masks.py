"""Step `masks`: pictures of one theme that show its keywords, each with a mask of where the keyword is seen.

Either the theme's target images, through a segmenter, or pictures that come with their masks (palimpsest.segmenters).
"""

from __future__ import annotations

from typing import Any

from palimpsest import store
from palimpsest.job import Job
from palimpsest.segmenters import contract


def pictures(job: Job) -> list[contract.Picture]:
    """The target images of this chunk with the keywords they were made of; none when the segmenter brings its own pictures.

    Raises ValueError when a prompt does not hold the keyword whose turn it was.
    """
    found: list[contract.Picture] = []
    keywords = job.args["keywords"]
    for item in job.of("images"):
        frame = store.read_parquet(item.path, ["prompt_id", "prompt", "image"])
        for row in frame.iter_rows(named=True):
            keyword = keywords[row["prompt_id"] % len(keywords)]
            if keyword not in row["prompt"]:
                raise ValueError(f"{item.path}: the prompt {row['prompt']!r} does not hold {keyword!r}")
            image = store.decode_png(row["image"]["bytes"])
            found.append(contract.Picture(image, row["prompt"], keyword))
    return found


def run(job: Job) -> None:
    import pyarrow as pa

    chosen = job.args["segmenter"]
    segmenter = contract.find(chosen["kind"])
    settings = segmenter.Settings.model_validate(chosen["settings"])
    theme, start, stop = job.where["theme"], job.args["start"], job.args["stop"]
    asked = contract.Asked(theme, tuple(job.args["keywords"]), start, stop)
    rows: list[dict[str, Any]] = []
    for made in segmenter.masked(settings, asked, pictures(job)):
        checked(made, job.args["resolution"], asked)
        stem = f"{theme}/{start + len(rows):05d}"
        image, mask = store.encode_png(made.picture.image), store.encode_png(made.mask)
        rows.append(
            {
                "prompt": made.picture.prompt,
                "keyword": made.picture.keyword,
                "found": made.found,
                "share": float(made.mask.mean()),
                "image": {"bytes": image, "path": f"{stem}.png"},
                "mask": {"bytes": mask, "path": f"{stem}-mask.png"},
            }
        )
    if len(rows) != stop - start:
        raise ValueError(
            f"{chosen['kind']} gave {len(rows)} masked images of {theme!r} instead of {stop - start}"
        )
    nothing = sum(not row["found"] for row in rows)
    job.write_parquet(
        pa.Table.from_pylist(rows),
        {"images": len(rows), "nothing_found": nothing},
        image_columns=["image", "mask"],
    )


def checked(made: contract.Masked, resolution: int, asked: contract.Asked) -> None:
    """Raise ValueError for a picture of another size than the model's, a mask that does not fit it, or a keyword not asked for."""
    image, mask = made.picture.image, made.mask
    if image.shape != (resolution, resolution, 3) or str(image.dtype) != "uint8":
        raise ValueError(
            f"masked images of {asked.theme!r} are {image.dtype} {image.shape}; the model's are uint8 "
            f"{(resolution, resolution, 3)} (model.resolution)"
        )
    if mask.shape != image.shape[:2] or str(mask.dtype) != "bool":
        raise ValueError(f"a mask is {mask.dtype} {mask.shape} for a picture of {image.shape[:2]}")
    if made.picture.keyword not in asked.keywords:
        raise ValueError(
            f"a masked image of {asked.theme!r} shows {made.picture.keyword!r}, not one of {asked.keywords}"
        )
