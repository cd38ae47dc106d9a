"""Every declared metric says how its number is to be read."""

from __future__ import annotations

import math
import re
from typing import get_args

import pytest

from palimpsest.metrics import contract, tables

METRICS = contract.declared()


def test_the_columns_of_the_table_that_are_metrics_are_declared() -> None:
    assert {"ep", "suppression", "induction", "p_value", "p_holm"} <= set(METRICS) & set(tables.SCHEMA)
    assert {"rmse", "ssim"} <= set(METRICS)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_declaration_is_complete(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name
    assert metric.title
    assert metric.title != name
    assert metric.direction in get_args(contract.Direction)
    assert metric.needs in get_args(contract.Need)
    low, high = metric.bounds
    assert (low if low is not None else -math.inf) < (high if high is not None else math.inf)
    assert re.fullmatch(rf"{name}/[1-9]\d*", metric.definition_id)
    assert re.search(r"\d{4}|benchmark|error", metric.reference)


def test_definition_ids_are_unique() -> None:
    assert len({metric.definition_id for metric in METRICS.values()}) == len(METRICS)
