"""What was measured on the pictures of benign prompts: the table, and the trade of erasure against preservation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from palimpsest.reports import figures, select
from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.measures import NAMES, SHOWN, Name
from palimpsest.reports.select import Row
from palimpsest.reports.tables import METHOD, Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = ("method", "preset", "theme", "keyword_set", "training_images", "suite")
PRESERVED = ("lpips_drift", "lpips_micro")
"""What a trade with erasure is drawn against: the first of these that was measured."""


def quality_rows(rows: Sequence[Row], inputs: ReportInputs) -> list[Row]:
    """One row per variant and suite that was measured, the base first, with a key per metric, its limits, and `quality_n`."""
    if inputs.quality is None:
        return []
    known = _by_key(rows)
    found: dict[tuple[Any, ...], Row] = {}
    for one in inputs.quality.iter_rows(named=True):
        if one["metric"] == "grd":
            continue
        key = tuple(one[name] for name in KEYS)
        if key not in known:
            continue
        whole = found.setdefault(
            key, {**known[key], "anchor": f"quality-{known[key]['anchor']}", "notes": []}
        )
        whole |= {
            f"{one['metric']}{end}": one[column]
            for end, column in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
        whole["quality_n"] = max(one["n"] or 0, whole.get("quality_n", 0))
        if one["reason"] and one["reason"] not in whole["notes"]:
            whole["notes"].append(one["reason"])
    for row in found.values():
        row["note"] = "; ".join(row["notes"])
        if row["is_base"]:  # it erases nothing, so it is aimed at nothing
            row |= {"theme": "", "variant": ""}
    return sorted(found.values(), key=lambda row: not row["is_base"])


def _by_key(rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """One row per variant and suite, over all of its data sets: a measure of quality knows no judged theme."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["dataset"] == select.OVERALL:
            found.setdefault(tuple(row[key] for key in KEYS), row)
    return found


def quality_table(rows: Sequence[Row], inputs: ReportInputs) -> Table | None:
    """Every measure of quality per variant; None when nothing was measured."""
    kept = quality_rows(rows, inputs)
    if not kept:
        return None
    measured = {name for row in kept for name in row if row.get(f"{name}_low") is not None}
    order = [*SHOWN, *(Name(name, name, 3, "") for name in sorted(measured - set(NAMES)))]
    columns = [*METHOD, Column("suite", "Suite")]
    columns += [
        Column(one.metric, _head(one, inputs.measures), "number", one.digits, with_interval=True)
        for one in order
        if one.metric in measured
    ]
    columns += [Column("quality_n", "n", "count")]
    if any(row["note"] for row in kept):
        columns += [Column("note", "Left out")]
    note = (
        "Means over the images that were made, with intervals over prompts; FID and KID with intervals from a jackknife over prompts. FID "
        "depends on the number of images and is given only when all were made. Numbers of the micro world's own networks are called micro."
    )
    return Table("quality", "Quality of images of benign prompts", note, columns, kept)


def _head(name: Name, measures: Mapping[str, Any]) -> str:
    """The head of a column; CLIPScore says whose embeddings they are, because its scale hangs on them."""
    head = name.head
    if name.metric == "clip_score":
        used = {str(m["weights"]) for m in measures.values() if m.get("kind") == "clip_score"}
        head += f" ({', '.join('/'.join(path.split('/')[-2:]) for path in sorted(used))})" if used else ""
    return head + {"higher": " ↑", "lower": " ↓"}.get(name.better, "")


def grd_table(rows: Sequence[Row], inputs: ReportInputs) -> Table | None:
    """GRD per variant, when a detector of parts was run."""
    if inputs.quality is None:
        return None
    known = _by_key(rows)
    kept = []
    for one in inputs.quality.iter_rows(named=True):
        row = known.get(tuple(one[name] for name in KEYS))
        if one["metric"] == "grd" and row is not None:
            limits = {
                f"grd{end}": one[key] for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
            kept.append({**row, **limits, "note": one["reason"], "anchor": f"grd-{row['anchor']}"})
    columns = [
        *METHOD,
        Column("suite", "Suite"),
        Column("grd", "GRD %", "percent", with_interval=True),
        Column("note", "Counted"),
    ]
    note = (
        "Erasure proportion of the target parts minus that of other parts: above 0 a method removes what it should and spares the rest, "
        "at 0 it removes both alike."
    )
    return Table("grd", "Which parts were erased", note, columns, kept) if kept else None


def points(main: Sequence[Row], rows: Sequence[Row], inputs: ReportInputs) -> tuple[str, list[Row]]:
    """The metric that stands for preservation, and the rows with a known EP and it, as `kept`, `kept_low`, `kept_high`."""
    suite = select.main_suite(inputs.params, "benign")
    found = {
        tuple(row[key] for key in KEYS[:5]): row
        for row in quality_rows(rows, inputs)
        if row["suite"] == suite
    }
    for name in PRESERVED:
        out = []
        for row in main:
            other = found.get(tuple(row[key] for key in KEYS[:5]))
            if other is not None and other.get(name) is not None:
                limits = {f"kept{end}": other.get(f"{name}{end}") for end in ("", "_low", "_high")}
                out.append({**row, **limits, "benign_answered": other.get("answered")})
        if out:
            return name, out
    return "", []


def front(found: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in both: none has more EP at as little change, or as much EP at less. By rising change."""
    best: list[Row] = []
    for row in sorted(found, key=lambda r: (r["kept"], -r["ep"])):
        if not best or row["ep"] > best[-1]["ep"]:
            best.append(row)
    return best


def pareto(found: Sequence[Row], themes: Sequence[str], name: str) -> Figure:
    """EP against change of benign images, one panel per theme, with the line of methods that no other beats."""
    labels = select.labels_in_order(found)
    head = NAMES[name].head
    figure, axes = figures.new(3.2 + 2.5 * len(themes), 3.9, ncols=len(themes), sharey=True, sharex=True)
    for axis, theme in zip(axes[0], themes, strict=True):
        here = [row for row in found if row["judged_theme"] == theme]
        line = front(here)
        axis.plot(
            [row["kept"] for row in line], [100 * row["ep"] for row in line], color=figures.LINE, linewidth=2
        )
        figures.trade(axis, here, "kept", labels)
        axis.set_title(theme, fontsize=10)
        axis.grid()
    figures.trade_limits(axes[0][0], found, "kept")
    axes[0][0].set_ylabel("erasure proportion (%)")
    figure.supxlabel(f"{head} of benign images; left is better", fontsize=9)
    figures.stage_legend(figure, found)
    key = "\n".join(f"{place:>2}  {label}" for place, label in enumerate(labels, 1))
    axes[0][-1].annotate(key, (1.04, 1), xycoords="axes fraction", va="top", fontsize=8, linespacing=1.35)
    return figure
