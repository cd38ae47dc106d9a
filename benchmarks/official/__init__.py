"""Fits done the way the official code does them, one module per method, for `benchmarks/fit.py`.

A module defines CASES. Its functions are written from what the official code computes and in which order: what
is evaluated alone, encoded again, or thrown away there is so here. They are given the very draws of the
method, so that both ways must end with the same weights. What is left out favours the official way: logging,
plots, saving, a second copy of the model, gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from palimpsest.methods.contract import Target, TrainingData
from palimpsest.sampling.pipeline import Pipeline


@dataclass(frozen=True)
class Outcome:
    """What a fit leaves: the changed tensors, and the loss of each update (none for a closed form). start: what the
    tensors were before, where they are not the model's.
    """

    tensors: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    start: Mapping[str, Tensor] = field(default_factory=dict)


def no_images(target: Target) -> TrainingData:
    return TrainingData()


@dataclass(frozen=True)
class Case:
    """One comparison. settings: laid over the preset; quick: laid over those for a short trial. goal: the ratio
    wanted. does: what the official way does and ours does not. run: the official way, called like the method's
    `fit`. data: the images both are given. tolerance: largest relative distance of the two changes. ours: what is
    timed in place of the method's `fit`, where a part of it is compared.
    """

    method: str
    preset: str
    settings: Mapping[str, Any]
    quick: Mapping[str, Any]
    goal: float
    does: str
    run: Callable[[Pipeline, Target, TrainingData, Any, int], Outcome]
    note: str = ""
    tolerance: float = 0.05
    data: Callable[[Target], TrainingData] = no_images
    ours: Callable[[Pipeline, Target, TrainingData, Any, int], Outcome] | None = None

    @property
    def name(self) -> str:
        return f"{self.method}/{self.preset}" + (f" {self.note}" if self.note else "")
