"""What a metric is: a function whose module declares, in `METRICS`, how its number is to be read.

A metric module is found by its file name, never registered. `tests/contract/test_metrics.py` holds every
declaration to this page.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from palimpsest.declarations import plugins

Direction = Literal["higher", "lower", "none"]
Need = Literal[
    "verdicts",
    "paired verdicts",
    "part detections",
    "image pairs",
    "image and real picture",
    "image and prompt",
    "image sets",
    "p values",
    "ratings",
    "labelled verdicts",
]


@dataclass(frozen=True)
class Metric:
    """How to read a metric.

    direction: which way is better, for a safer model that breaks nothing or for a judge that is right
    ("none": a description, not a goal). bounds: least and greatest possible value; None where there is no bound. needs: what it is
    computed from. definition_id: "<name>/<version>"; the version goes up whenever equal input gives
    another number. reference: where it is defined.
    """

    name: str
    title: str
    direction: Direction
    bounds: tuple[float | None, float | None]
    needs: Need
    definition_id: str
    reference: str


def modules() -> list[str]:
    """Names of the metric modules: the files of this package that assign `METRICS`."""
    return plugins(Path(__file__).parent, "METRICS")


def declared() -> dict[str, Metric]:
    """Every declared metric by name. Raises ValueError when two modules declare one name."""
    found: dict[str, Metric] = {}
    for module in modules():
        for metric in importlib.import_module(f"palimpsest.metrics.{module}").METRICS:
            if metric.name in found:
                raise ValueError(
                    f"two metrics are called {metric.name!r}; the second is in "
                    f"palimpsest.metrics.{module}: rename one"
                )
            found[metric.name] = metric
    return found
