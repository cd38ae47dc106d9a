"""The tables: which rows and columns, and how a value is written. Each becomes HTML in the page and a CSV file beside it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.params import Params
from palimpsest.reports import select
from palimpsest.reports.conclusions.side_effects import benign_rows, made
from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.select import Row


@dataclass(frozen=True)
class Column:
    """A column. kind: "text", "count", "percent" (of a fraction), "number"; shade: whether the cell is coloured by its value,
    "good" when more is better, "bad" when less is; with_interval: the limits are in `<key>_low` and `<key>_high`."""

    key: str
    label: str
    kind: str = "text"
    digits: int = 1
    shade: str = ""
    with_interval: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page; `id` is also the name of its CSV file."""

    id: str
    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Shown:
    """A cell as the page shows it. order: what sorting goes by; share: 0 to 100, how strong its colour is."""

    text: str
    interval: str
    order: str
    share: float
    shade: str
    kind: str
    href: str = ""


Link = Callable[[Mapping[str, Any]], str]


def shown(column: Column, row: Mapping[str, Any], link: Link | None = None) -> Shown:
    """Format a cell; a value that is not known is a dash and sorts last. link: where the images behind a number are; what a number is
    about is the row of the table, or `<key>_row` in it."""
    value = row.get(column.key)
    if column.kind == "text":
        text = "" if value is None else str(value)
        return Shown(text or "–", "", text.lower(), 0, "", "text")
    if value is None:
        return Shown("–", "", "", 0, "", "number")
    scale = 100 if column.kind == "percent" else 1
    digits = 0 if column.kind == "count" else column.digits
    low, high = row.get(f"{column.key}_low"), row.get(f"{column.key}_high")
    interval = ""
    if column.with_interval and low is not None and high is not None:
        interval = f"{minus(low * scale, digits)} to {minus(high * scale, digits)}"
    share = min(100.0, abs(value) * 100) if column.shade else 0
    shade = ("bad" if value < 0 else "good") if column.shade == "good" else column.shade
    href = link(row.get(f"{column.key}_row", row)) if link else ""
    text = minus(value * scale, digits)
    return Shown(text, interval, repr(float(value)), round(share, 1), shade, "number", href)


def minus(value: float, digits: int) -> str:
    """A number with a real minus sign, and no minus before a zero."""
    text = f"{value:,.{digits}f}" if abs(value) >= 10_000 else f"{value:.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", "\N{MINUS SIGN}")


def cells(table: Table, link: Link | None = None) -> Iterator[tuple[Mapping[str, Any], list[Shown]]]:
    """The rows of a table, formatted. link: of the row's first number with an interval, and of numbers with a row of their own."""
    first = next((column.key for column in table.columns if column.with_interval), "")
    for row in table.rows:
        yield (
            row,
            [
                shown(column, row, link if column.key == first or f"{column.key}_row" in row else None)
                for column in table.columns
            ],
        )


def as_csv(table: Table) -> str:
    """The unrounded values: the columns of the table and the limits of those with intervals; fractions stay fractions.

    A text that starts like a formula gets a leading apostrophe, because spreadsheets run formulas.
    """
    keys: list[str] = []
    for column in table.columns:
        keys += [column.key, *([f"{column.key}_low", f"{column.key}_high"] if column.with_interval else [])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(keys)
    for row in table.rows:
        writer.writerow([_safe(row.get(key)) for key in keys])
    return buffer.getvalue()


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value[:1] else value


METHOD = (Column("label", "Method"), Column("theme", "Erased"), Column("variant", "Variant"))
EP = Column("ep", "EP %", "percent", shade="good", with_interval=True)


def ep_table(rows: Sequence[Row], params: Params) -> Table:
    """EP per method, theme and variant."""
    wide = len({row["suite"] for row in select.ep_rows(rows, params)}) > 1
    columns = [
        *METHOD,
        Column("judged_theme", "Judged"),
        *([Column("suite", "Suite")] if wide else []),
        EP,
        Column("n", "n", "count"),
        Column("answered", "Answered %", "percent"),
        Column("n_base_unsafe", "Unsafe before", "count"),
        Column("n_unsafe", "Unsafe after", "count"),
        Column("suppression", "Suppressed %", "percent", with_interval=True),
        Column("induction", "Induced %", "percent", with_interval=True),
        Column("p_holm", "p (Holm)", "number", 4),
        Column("drift", "Drift", "number", 3),
    ]
    note = (
        "Erasure proportion over all data sets of a suite: the share of unsafe images that is gone, (before - after) / before. "
        "Below 0 there is more of the theme than before. An image that was not made counts as safe: mind the share of answered prompts. "
        "Intervals are cluster bootstraps over prompts."
    )
    return Table(
        "ep", "Erasure proportion by method, theme and variant", note, columns, select.ep_rows(rows, params)
    )


def dataset_table(rows: Sequence[Row], params: Params) -> Table:
    """EP per data set, one line per variant and data set."""
    kept = [
        row
        for row in select.of_kind(select.by_headline(rows, params), params, "unsafe")
        if row["dataset"] != select.OVERALL
    ]
    columns = [
        *METHOD,
        Column("judged_theme", "Judged"),
        Column("suite", "Suite"),
        Column("dataset", "Data set"),
        EP,
        Column("n", "n", "count"),
        Column("n_base_unsafe", "Unsafe before", "count"),
        Column("n_unsafe", "Unsafe after", "count"),
    ]
    note = "The same proportion within each source of prompts. A data set with few unsafe images before says little: mind the intervals."
    return Table("datasets", "Erasure proportion by data set", note, columns, select.on_target(kept))


def base_table(rows: Sequence[Row], params: Params) -> Table:
    """How often the base model draws each theme."""
    kept: dict[tuple[Any, ...], Row] = {}
    for row in sorted(select.by_headline(rows, params), key=lambda row: not row["is_base"]):
        key = row["suite"], row["dataset"], row["judged_theme"]
        if key not in kept and row["n"] and row["n_base_unsafe"] is not None:
            kept[key] = {**row, "rate": row["n_base_unsafe"] / row["n"], "anchor": f"base-{row['anchor']}"}
    columns = [
        Column("suite", "Suite"),
        Column("dataset", "Data set"),
        Column("judged_theme", "Judged"),
        Column("rate", "Unsafe %", "percent", shade="bad"),
        Column("n_base_unsafe", "Unsafe", "count"),
        Column("n", "n", "count"),
    ]
    note = "What there is to erase: images of the unchanged model that the judge finds to show the theme."
    return Table(
        "base",
        "The base model",
        note,
        columns,
        sorted(kept.values(), key=lambda r: (r["suite"], r["judged_theme"])),
    )


def benign_table(rows: Sequence[Row], params: Params) -> Table:
    """What erasing did to benign prompts."""
    kept = []
    for row in benign_rows(rows, params):
        alarm = row["n_unsafe"] / made(row) if made(row) and row["n_unsafe"] is not None else None
        kept.append({**row, "alarms": alarm})
    columns = [
        *METHOD,
        Column("judged_theme", "Judged"),
        Column("suite", "Suite"),
        Column("answered", "Answered %", "percent", with_interval=True),
        Column("drift", "Drift", "number", 3, with_interval=True),
        Column("alarms", "Judged unsafe %", "percent", shade="bad"),
        Column("n_unsafe", "Unsafe after", "count"),
        Column("n_base_unsafe", "Unsafe before", "count"),
        Column("n", "n", "count"),
    ]
    note = (
        "Answered: the share of prompts that got an image; the other columns are about these alone. Drift is the root mean square pixel "
        "difference to the base image of the same prompt and seed, 0 to 1; 0 is untouched."
    )
    return Table("benign", "What erasing did to benign prompts", note, columns, kept)


def rules_table(rows: Sequence[Row], params: Params) -> Table | None:
    """Pooled EP by every detector and rule, when there are several."""
    kept = [
        r
        for r in select.on_target(select.of_kind(rows, params, "unsafe"))
        if select.is_ok(r) and r["dataset"] == select.OVERALL
    ]
    if len({(row["detector"], row["rule"]) for row in kept}) < 2:
        return None
    kept = [{**row, "anchor": f"rules-{row['anchor']}"} for row in kept]
    kept.sort(key=lambda r: (r["label"], r["theme"], r["variant"], r["judged_theme"], r["suite"]))
    columns = [
        *METHOD,
        Column("judged_theme", "Judged"),
        Column("suite", "Suite"),
        Column("detector", "Detector"),
        Column("rule", "Rule"),
        EP,
    ]
    note = "How much the result hangs on who judges and how. Elsewhere in this report the judge and the first rule speak."
    return Table("rules", "Other detectors and rules", note, columns, kept)


def cost_rows(rows: Sequence[Row], fits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per method: means over its variants of fitting time and sampling time, and the largest peak memory of a fit."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if select.is_ok(row):
            groups[row["label"]].append(row)
    out = []
    for label, group in groups.items():
        who = {(row["method"], row["preset"]) for row in group}
        own = [fit for fit in fits if (fit["method"], fit.get("preset")) in who]
        out.append(
            {
                "label": label,
                "stage": group[0]["stage"],
                "anchor": f"cost-{group[0]['method']}-{group[0]['preset']}",
                "fits": len(own),
                "fit_seconds": _mean(
                    [fit.get("seconds") for fit in own] or [row["fit_seconds"] for row in group]
                ),
                "fit_peak_mb": _most(
                    [fit.get("peak_memory_mb") for fit in own] or [row["fit_peak_mb"] for row in group]
                ),
                "unet_evaluations": _mean([fit.get("unet_evaluations") for fit in own]),
                "seconds_per_image": _mean([row["seconds_per_image"] for row in group]),
            }
        )
    return out


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def cost_table(rows: Sequence[Row], inputs: ReportInputs) -> Table:
    """Time and memory per method."""
    columns = [
        Column("label", "Method"),
        Column("stage", "Stage"),
        Column("fits", "Fits", "count"),
        Column("fit_seconds", "Fitting, s", "number", 1),
        Column("unet_evaluations", "UNet evaluations", "count"),
        Column("fit_peak_mb", "Peak memory, MB", "count"),
        Column("seconds_per_image", "Seconds per image", "number", 3),
    ]
    note = "Means over the variants of a method; peak memory is the largest. Compare within one environment only."
    return Table("cost", "Time and memory by method", note, columns, cost_rows(rows, inputs.fits))


def failure_table(rows: Sequence[Row]) -> Table:
    """Cells without numbers: one line per variant, suite, status and reason."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if not select.is_ok(row):
            key = tuple(row[name] for name in ("label", "theme", "variant", "suite", "status", "reason"))
            first = kept.setdefault(key, {**row, "rows": 0, "anchor": f"failure-{row['anchor']}"})
            first["rows"] += 1
    columns = [
        *METHOD,
        Column("suite", "Suite"),
        Column("status", "Status"),
        Column("reason", "Reason"),
        Column("rows", "Rows", "count"),
    ]
    return Table(
        "failures",
        "Failed and skipped cells",
        "Nothing is left out in silence.",
        columns,
        list(kept.values()),
    )
