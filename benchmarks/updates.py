"""Seconds of one update of every method that trains, and of a whole edit of those that solve."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from machine import peak_since, worked

from palimpsest.methods import registry
from palimpsest.methods.contract import ImageSet, Target, ThemeTarget, TrainingData
from palimpsest.params import Params
from palimpsest.sampling.pipeline import Pipeline

# The presets of the paper's table, and more settings that a short fit needs: nothing that changes what an update does.
TRAINED: dict[str, Mapping[str, Any]] = {
    "esd/x_compvis": {},
    "spm/paper": {},
    "ac/benchmark": {},
    "mace/t14_object": {},
    "ace/official": {},
    "au/official": {"warmup_iterations": 0, "attack_every": 1},
    "salun/paper": {"epochs": 1},
    "erasediff/official": {"epochs": 1},
    "metaun/official": {},
    "selfd/official": {"epochs": 1},
}
SOLVED = ("uce/compvis2023", "rece/official")
# Updates of the two fits whose difference is timed, so that what comes before and after the updates does not count.
FEW, MORE = 1, 3


def target_of(params: Params) -> Target:
    """All themes of the settings together."""
    themes = tuple(ThemeTarget(name, tuple(t.detailed), t.safe) for name, t in params.themes.items())
    return Target(themes, tuple(params.retain))


def data_of(module: Any, target: Target, side: int, count: int = 16) -> TrainingData:
    """Random pictures of the roles that a method reads, with the left half masked; time does not depend on what they show."""
    rng = np.random.default_rng(0)
    sets = []
    for role in module.INFO.needs:
        for theme in target.themes:
            images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
            words = tuple(theme.keywords[i % len(theme.keywords)] for i in range(count))
            masked: tuple[Any, ...] = ()
            if role == "masked_images":
                masks = np.zeros((count, side, side), bool)
                masks[:, :, : side // 2] = True
                masked = (masks, words)
            sets.append(ImageSet(theme.name, role, images, words, *masked))
    return TrainingData(tuple(sets))


def fitted(pipeline: Pipeline, params: Params, name: str, changes: Mapping[str, Any], side: int) -> float:
    """Seconds of one fit (of the processor, on one thread)."""
    method, _, preset = name.partition("/")
    module = registry.get(method)
    settings = registry.settings(method, preset, dict(changes))
    target = target_of(params)
    data = data_of(module, target, side)
    began = worked(pipeline.device)
    artifact = module.fit(pipeline, target, data, settings, 0)
    if name in SOLVED:
        module.apply(pipeline, artifact, target, settings)
    return worked(pipeline.device) - began


def measured(pipeline: Pipeline, params: Params, small: bool, side: int) -> dict[str, Any]:
    """Figures by method. small: the settings of params.yaml for the micro world instead of the presets' own."""
    found: dict[str, Any] = {}
    for name, more in TRAINED.items():
        method, _, preset = name.partition("/")
        own = {**params.overrides.get(method, {}), **params.overrides.get(name, {})} if small else {}
        wanted = registry.settings(method, preset, own).model_dump().get("iterations")
        changes = {**own, **more}
        peak, began = peak_since(pipeline.device), time.perf_counter()
        short = fitted(pipeline, params, name, {**changes, "iterations": FEW}, side)
        longer = fitted(pipeline, params, name, {**changes, "iterations": MORE}, side)
        seconds = max(0.0, longer - short) / (MORE - FEW)
        found[name] = {
            "seconds_per_update": round(seconds, 4),
            "seconds_of_two_short_fits": round(time.perf_counter() - began, 2),
            "updates_of_a_fit": wanted,
            "minutes_of_a_fit": round(seconds * wanted / 60, 2) if wanted else None,
            "peak_memory_mb": peak(),
        }
        print(f"  {name}: {seconds:.3f} s per update", flush=True)
        if torch.device(pipeline.device).type == "cuda":
            torch.cuda.empty_cache()
    for name in SOLVED:
        method = name.partition("/")[0]
        own = params.overrides.get(method, {}) if small else {}
        first, seconds = (fitted(pipeline, params, name, own, side) for _ in range(2))
        found[name] = {"seconds_of_an_edit": round(min(first, seconds), 4)}
        print(f"  {name}: {min(first, seconds):.3f} s per edit", flush=True)
    return found
