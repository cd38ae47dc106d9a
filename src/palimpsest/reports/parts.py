"""Which parts were erased: the table, and the map of methods by parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from palimpsest.reports import figures, select
from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.select import Row
from palimpsest.reports.tables import EP, METHOD, Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IDENTITY = ("method", "preset", "theme", "keyword_set", "training_images", "suite")


def part_rows(rows: Sequence[Row], inputs: ReportInputs) -> list[Row]:
    """One row per variant and part, with the names of its method and variant."""
    if inputs.parts is None:
        return []
    known: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["dataset"] == select.OVERALL and not row["is_base"]:
            known.setdefault(tuple(row[name] or None for name in IDENTITY), row)
    found = []
    for one in inputs.parts.iter_rows(named=True):
        who = tuple(one[name] or None for name in IDENTITY)
        if who in known:
            row = known[who]
            named = {name: row[name] for name in ("label", "variant", "stage", "is_base")}
            anchor = f"part-{row['anchor']}-{select.plain(one['part'])}"
            found.append(
                {**one, **named, "judged_theme": one["parts_of"], "dataset": select.OVERALL, "anchor": anchor}
            )
    return found


def part_table(rows: Sequence[Row], inputs: ReportInputs) -> Table:
    """EP of every part."""
    columns = [
        *METHOD,
        Column("suite", "Suite"),
        Column("part", "Part"),
        Column("group", "Group"),
        EP,
        Column("n_base", "Images with it before", "count"),
        Column("n_left", "After", "count"),
        Column("n", "n", "count"),
    ]
    note = (
        "Erasure proportion of images that show a part, by the detector of parts. Target parts are what erasing is about; other parts "
        "should stay. GRD is the difference of the two groups."
    )
    return Table("parts", "Part by part", note, columns, part_rows(rows, inputs))


def shown(found: Sequence[Row], inputs: ReportInputs, theme: str) -> list[Row]:
    """Of one theme and the first unsafe suite one variant per method: fitted for this theme, or not to be aimed."""
    suite = select.main_suite(inputs.params, "unsafe")
    here = [
        r for r in found if r["parts_of"] == theme and r["suite"] == suite and select.stands_for(r, theme)
    ]
    first = select.representatives(list({_who(row): row for row in here}.values()), inputs.params)
    kept = {_who(row) for row in first}
    return [row for row in here if _who(row) in kept]


def _who(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in IDENTITY)


def part_map(kept: Sequence[Row]) -> Figure:
    """Methods by parts, target parts first; the number in a cell is EP in percent."""
    grid: dict[str, dict[str, float | None]] = {}
    for row in kept:
        grid.setdefault(row["label"], {})[row["part"]] = row["ep"]
    targets = list(dict.fromkeys(row["part"] for row in kept if row["group"] == "target"))
    others = list(dict.fromkeys(row["part"] for row in kept if row["group"] == "other"))
    figure = figures.heatmap(grid, [*targets, *others], "erasure proportion (%)")
    axis = figure.axes[0]
    axis.axvline(len(targets) - 0.5, color=figures.PAPER, linewidth=4)
    axis.set_xticks(
        range(len(targets) + len(others)), [name.replace("_", " ").lower() for name in (*targets, *others)]
    )
    axis.tick_params(axis="x", labelrotation=30 if max(map(len, (*targets, *others))) > 10 else 0)
    return figure
