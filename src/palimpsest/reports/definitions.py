"""Which definition a number of the results follows: the ids that the metrics declare, by the column that holds the number."""

from __future__ import annotations

from palimpsest.metrics import drift, ep, paired, pairwise, rank_intervals, ranks

_DECLARED = {
    metric.name: metric.definition_id
    for module in (drift, ep, paired, pairwise, rank_intervals, ranks)
    for metric in module.METRICS
}
# A column is called like its metric, but for this one.
_COLUMNS = {"drift": "rmse"}


def of(column: str) -> str:
    """The definition id of a column; empty for what no metric here declares (published FID, seconds, shares of answers)."""
    return _DECLARED.get(_COLUMNS.get(column, column), "")
