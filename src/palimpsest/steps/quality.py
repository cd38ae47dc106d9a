"""Step `quality`: what one measure says about every picture of a shard, and the features that measures of sets need later.

Values and features are null where no picture was made.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from palimpsest import store
from palimpsest.job import Job

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

KEPT = ("image_id", "source", "prompt_id", "repetition", "decision")
PREFIX = "features_"


def measure_of(job: Job) -> Any:
    """The measure of this job with its weights loaded."""
    import torch

    spec = job.args["measure"]
    module = importlib.import_module(f"palimpsest.metrics.{spec['kind']}")
    batch = {"batch": job.hints["batch"]} if "batch" in job.hints else {}
    settings = module.Settings.model_validate({**spec["settings"], **batch})
    return module.load(settings, "cuda" if torch.cuda.is_available() else "cpu")


def feature_column(features: np.ndarray, places: list[int], count: int) -> pl.Series:
    """Features float32 [n, d] of the rows `places` as a column of `count` rows, null elsewhere."""
    import polars as pl

    rows: list[list[float] | None] = [None] * count
    for place, row in zip(places, features, strict=True):
        rows[place] = row.tolist()
    return pl.Series(rows, dtype=pl.List(pl.Float32))


def with_measured(frame: pl.DataFrame, measure: Any, pictures: Any, places: list[int]) -> pl.DataFrame:
    """The rows with one column per metric and per set of features. places: the rows that have a picture."""
    import numpy as np
    import polars as pl

    columns = []
    for name, values in measure.measure(pictures).items():
        column = np.full(len(frame), np.nan)
        column[places] = values
        columns.append(pl.Series(name, column, dtype=pl.Float64).fill_nan(None))
    for name, features in measure.features(pictures).items():
        columns.append(feature_column(features, places, len(frame)).alias(f"{PREFIX}{name}"))
    return frame.with_columns(columns)


def run(job: Job) -> None:
    from palimpsest.metrics.measuring import Pictures
    from palimpsest.metrics.real_pictures import Real, RealPictures

    source = job.one("generate")
    frame = store.read_parquet(source.path, [*KEPT, "prompt", "image"])
    stored = frame["image"].to_list()
    places = [i for i, image in enumerate(stored) if image is not None and image["bytes"] is not None]
    base: list[Any] = []
    if job.of("reference"):
        other = store.read_parquet(job.one("reference").path, ["image_id", "image"])
        if other["image_id"].to_list() != frame["image_id"].to_list():
            raise ValueError(
                f"{source.path} and the base's pictures do not hold the same images in the same order"
            )
        theirs = other["image"].to_list()
        # a picture made elsewhere has no noise in common with the base, so their distance says nothing
        provided = frame["decision"].to_list()
        base = [
            store.decode_png(theirs[i]["bytes"])
            if theirs[i] is not None and provided[i] != "provided"
            else None
            for i in places
        ]
    real: list[Any] = []
    if "real" in job.args:
        lookup = RealPictures(Real.model_validate(job.args["real"]), job.args["resolution"])
        real = [lookup.get(int(frame["prompt_id"][i])) for i in places]
    prompts = frame["prompt"].to_list()
    pictures = Pictures(
        images=[store.decode_png(stored[i]["bytes"]) for i in places],
        prompts=[prompts[i] for i in places],
        base=base,
        real=real,
    )
    measure = measure_of(job)
    measured = with_measured(frame.select(KEPT), measure, pictures, places)
    job.write_parquet(measured, {"measure": measure.identity(), "images": len(frame)})
