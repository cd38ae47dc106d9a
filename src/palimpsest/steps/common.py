"""What several steps do alike: build the model, a method's target and requests for images."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from palimpsest import store
from palimpsest.job import Job
from palimpsest.methods.contract import Artifact, Target, ThemeTarget
from palimpsest.specs import Model, Sampler

if TYPE_CHECKING:
    import pyarrow as pa

    from palimpsest.sampling.loop import Generation
    from palimpsest.sampling.pipeline import Pipeline


def model_of(job: Job) -> Pipeline:
    """The base checkpoint of this job, in float32: edits are made in full precision, the sampler casts what it is asked to."""
    from palimpsest.sampling.load import load_pipeline

    return load_pipeline(Model.model_validate(job.args["model"]))


def sampler_of(job: Job) -> Sampler:
    """The sampler of the recipe, with the batch size of the run."""
    return Sampler(**job.args["sampler"], batch=job.hints.get("batch", 32))


def target_of(job: Job) -> Target:
    """What the variant erases. Keyword sets that are derived come from the keywords artifact."""
    spec = job.args["target"]
    derived = store.read_json(job.one("keywords").path)["themes"] if job.of("keywords") else {}
    themes = tuple(
        ThemeTarget(t["name"], tuple(t["keywords"] or derived[t["name"]]["concise"]), t["safe"])
        for t in spec["themes"]
    )
    return Target(themes, tuple(spec["retain"]))


def method_of(job: Job) -> tuple[ModuleType, Any]:
    """The method's module and its checked settings."""
    module = importlib.import_module(job.args["method"])
    return module, module.Settings.model_validate(job.args["settings"])


def artifact_of(job: Job) -> tuple[Artifact, Mapping[str, Any]]:
    """The fitted artifact (empty for a method that fits nothing) and its description."""
    if not job.of("erase"):
        return Artifact(), {}
    tensors, meta = store.read_tensors(job.one("erase").path)
    return Artifact(tensors, meta.get("fit", {})), meta


GENERATION_COLUMNS = ("image_id", "source", "prompt_id", "repetition", "prompt", "seed")


def generation_table(rows: Sequence[Mapping[str, Any]], generations: Iterable[Generation]) -> pa.Table:
    """Generations beside their prompt rows, images as PNG in a struct column; order and count of `rows` are kept.

    Raises ValueError when a generation is missing or comes in another order.
    """
    import pyarrow as pa

    columns: dict[str, list[Any]] = {
        name: [] for name in (*GENERATION_COLUMNS, "decision", "reason", "seconds", "image")
    }
    made = iter(generations)
    for row in rows:
        generation = next(made, None)
        if generation is None or generation.image_id != row["image_id"]:
            raise ValueError(
                f"expected the generation of {row['image_id']}, got {getattr(generation, 'image_id', 'nothing')}"
            )
        for name in GENERATION_COLUMNS:
            columns[name].append(row[name])
        columns["decision"].append(generation.decision)
        columns["reason"].append(generation.reason)
        columns["seconds"].append(generation.seconds)
        image = generation.image
        path = f"{row['image_id']}.png"
        columns["image"].append(None if image is None else {"bytes": store.encode_png(image), "path": path})
    types = {"prompt_id": pa.int64(), "repetition": pa.int64(), "seed": pa.int64(), "seconds": pa.float64()}
    types["image"] = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table(
        {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
    )
