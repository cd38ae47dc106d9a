"""What several steps do alike: build the model and a method's target."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING, Any

from palimpsest import store
from palimpsest.job import Job
from palimpsest.methods.contract import Artifact, Target, ThemeTarget
from palimpsest.specs import Model, Sampler

if TYPE_CHECKING:
    from palimpsest.sampling.memory import Halving
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


def noted(halvings: Sequence[Halving]) -> dict[str, Any]:
    """What the description of an artifact says about memory: nothing unless it ran out."""
    return {"halvings": [asdict(one) for one in halvings]} if halvings else {}
