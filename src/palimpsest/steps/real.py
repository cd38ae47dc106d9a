"""Step `real`: features of the real pictures of a suite's prompts. The pictures themselves are not stored."""

from __future__ import annotations

from palimpsest import store
from palimpsest.job import Job
from palimpsest.steps.quality import PREFIX, feature_column, measure_of


def run(job: Job) -> None:
    import polars as pl

    from palimpsest.metrics.measuring import Pictures
    from palimpsest.metrics.real_pictures import Real, RealPictures

    frame = store.read_parquet(job.one("prompts").path).filter(gate="ok")
    frame = frame.select("source", "prompt_id", "prompt").unique(maintain_order=True)
    lookup = RealPictures(Real.model_validate(job.args["real"]), job.args["resolution"])
    measure = measure_of(job)
    parts: list[pl.DataFrame] = []
    for rows in frame.iter_slices(256):  # ten thousand photographs do not fit in memory
        found = [lookup.get(int(number)) for number in rows["prompt_id"]]
        places = [i for i, picture in enumerate(found) if picture is not None]
        prompts = rows["prompt"].to_list()
        pictures = Pictures(
            images=[picture for picture in found if picture is not None],
            prompts=[prompts[i] for i in places],
        )
        columns = [
            feature_column(features, places, len(rows)).alias(f"{PREFIX}{name}")
            for name, features in measure.features(pictures).items()
        ]
        parts.append(rows.select("source", "prompt_id").with_columns(columns))
    table = pl.concat(parts)
    missing = sum(table[name].null_count() for name in table.columns[2:3])
    if missing:
        raise FileNotFoundError(
            f"{missing} of {len(table)} prompts of {job.where['suite']} have no real picture in {job.args['real']['path']}; "
            "complete the folder, or leave the suite out of `quality.real`"
        )
    job.write_parquet(table, {"measure": measure.identity(), "images": len(table)})
