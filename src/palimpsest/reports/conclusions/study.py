"""A results table that rules draw conclusions from: the rows of an experiment, or the published ones, in one shape.

Rows are those of `select.rows_of`: one per variant, suite, data set, detector, rule and judged theme. Beside the columns of
`cells.parquet` they may hold measures of quality (on benign suites: those of `Study.measures`) and `grd` (on unsafe ones), and they hold
`select.FACTS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palimpsest.reports import definitions, select
from palimpsest.reports.intervals import Estimate, difference
from palimpsest.reports.select import Row, Setting

IDENTITY = ("method", "preset", "theme", "keyword_set", "training_images")
PLACE = ("suite", "detector", "rule", "judged_theme")


@dataclass(frozen=True)
class Measure:
    """How a column reads. sign: +1 when more is better, -1 when less is. aspect: what it tells about."""

    key: str
    title: str
    sign: int
    aspect: str


MEASURES = (
    Measure("fid", "FID", -1, "image quality"),
    Measure("lpips", "LPIPS", -1, "image quality"),
    Measure("clips", "CLIPScore", 1, "semantic alignment"),
    Measure("ir", "ImageReward", 1, "semantic alignment"),
    # speaks for image quality only where none of the above was measured
    Measure("drift", "benign drift", -1, "drift"),
)
DRIFT = MEASURES[-1]
QUALITY = tuple(measure.key for measure in MEASURES if measure is not DRIFT)


@dataclass(frozen=True)
class Pair:
    """Two rows on the same prompts: the difference of their EP with a paired interval, and p after Holm's correction."""

    gap: Estimate
    p_holm: float


@dataclass(frozen=True)
class Study:
    """What the rules read.

    name: of the experiment; published: whether these are the published tables, whose intervals come from recovered counts; setting:
    themes, suites, judge and the like; pairs: paired comparisons by `pair_key`; toxicity: rows of `toxicity.table`; judges: one
    dict per detector and theme (detector, theme, accuracy, recall, f1 as fractions, n); measures: what was measured on benign prompts,
    by the names that the published tables give it, or, for an experiment, by those of its own table of quality; definition_ids: column ->
    definition id, for columns that came from that table.
    """

    name: str
    setting: Setting
    rows: Sequence[Row]
    published: bool = False
    pairs: Mapping[tuple[Any, ...], Pair] = field(default_factory=dict)
    toxicity: Sequence[Mapping[str, Any]] = ()
    judges: Sequence[Mapping[str, Any]] = ()
    measures: Sequence[Measure] = MEASURES
    definition_ids: Mapping[str, str] = field(default_factory=dict)

    def definition(self, column: str) -> str:
        """The definition id of a column; empty where none is declared, as for published quality and GRD."""
        return self.definition_ids.get(column) or definitions.of(column)

    @property
    def attack_suites(self) -> list[str]:
        """Unsafe suites that belong to one theme: adversarial prompts."""
        return [n for n, s in self.setting.suites.items() if s.kind == "unsafe" and s.theme is not None]

    def compared(self, a: Row, b: Row) -> Pair | None:
        """The paired comparison of two rows (a minus b), where the table has it."""
        here = self.pairs.get(pair_key(a, b))
        if here is not None:
            return here
        back = self.pairs.get(pair_key(b, a))
        if back is None:
            return None
        gap = back.gap
        return Pair(Estimate(-gap.value, -gap.high, -gap.low), back.p_holm)

    def gap(self, a: Row, b: Row) -> Estimate:
        """The difference of two EPs: paired where it was measured, else from the two intervals."""
        pair = self.compared(a, b)
        return pair.gap if pair else difference(select.estimate(a), select.estimate(b))

    def differ(self, a: Row, b: Row) -> bool:
        """Whether two EPs can be told apart: p after correction below 1 - confidence and an interval without 0, or, without a paired
        comparison, an interval of the difference without 0."""
        pair = self.compared(a, b)
        if pair is None:
            return not self.gap(a, b).covers_zero
        return not pair.gap.covers_zero and pair.p_holm < 1 - self.setting.statistics.confidence


def pair_key(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a comparison of two rows is found; rows of different places have none."""
    return (*(a[k] for k in PLACE), *_who(a), *(b[k] for k in PLACE), *_who(b))


def _who(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] or None for name in IDENTITY)


def pairs_of(table: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], Pair]:
    """Paired comparisons by `pair_key`, from the rows of `metrics.pairwise`."""
    found = {}
    for row in table:
        place = {name: row[name] for name in PLACE}
        a, b = ({**place, **{name: row[f"{side}_{name}"] for name in IDENTITY}} for side in ("a", "b"))
        gap = Estimate(row["difference"], row["low"], row["high"])
        found[pair_key(a, b)] = Pair(gap, row["p_holm"])
    return found
