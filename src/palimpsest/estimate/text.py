"""The bill as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from palimpsest.estimate.bill import Amount, Bill, Row
from palimpsest.estimate.downloads import Item, to_fetch
from palimpsest.findings import size

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float) -> str:
    """A count for people: whole below ten thousand, then with a unit."""
    for scale, unit in UNITS:
        if value >= (10 * scale if unit == "k" else scale):
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f}"


def hours(value: float) -> str:
    """Hours for people."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, all others to the right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        rest = (f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([f"{cells[0]:<{widths[0]}}", *rest]).rstrip()

    return [line(heads), line(["-" * width for width in widths]), *map(line, rows)]


def _cells(name: str, amount: Amount, on_device: bool = True) -> list[str]:
    return [
        name,
        number(amount.jobs),
        number(amount.images) if amount.images else "-",
        number(amount.evaluations) if amount.evaluations else "-",
        hours(amount.hours) if on_device else "-",
        size(amount.disk),
    ]


def _rows(rows: Sequence[Row], whole: bool, last: Amount, left: Amount) -> list[list[str]]:
    found = []
    for row in rows:
        amount = row.total if whole else row.remaining
        if not amount.jobs:
            continue
        cells = _cells(row.name, amount, row.on_device)
        found.append([*cells, hours(row.remaining.hours) if row.on_device else "-"] if whole else cells)
    end = _cells("all", last)
    return [*found, [*end, hours(left.hours)] if whole else end]


def lines(bill: Bill, found: Sequence[Item], remaining_only: bool, other: str = "") -> list[str]:
    """The whole report. other: a remark about another setting, or empty."""
    whole, chip = not remaining_only, bill.chip
    heads = ["", "jobs", "images", "evaluations", "hours", "disk", *(["hours left"] if whole else [])]
    last = bill.total if whole else bill.remaining
    text = [
        f"{bill.experiment} on one {chip.title}: {bill.variants} variants beside the base; {'everything' if whole else 'what is left'}",
        f"rates: {chip.source}",
        "",
        *table(["stage", *heads[1:]], _rows(bill.stages, whole, last, bill.remaining)),
        "",
        *table(["method", *heads[1:]], _methods(bill, whole)),
        "",
        "evaluations: of the U-Net, of single samples, forward (an image with guidance takes two a step). hours: of one device, start of",
        "jobs and reading of weights included; - where a job needs none. A method's hours hold its fits, images, scores and quality.",
    ]
    if other:
        text += [other]
    text += ["", *_items(found)]
    if bill.unknown or bill.missing:
        text += ["", "not counted:", *(f"  {what}" for what in (*bill.unknown, *bill.missing))]
    return text


def _methods(bill: Bill, whole: bool) -> list[list[str]]:
    found = []
    for row in bill.methods:
        amount = row.total if whole else row.remaining
        if amount.jobs:
            found.append([*_cells(row.name, amount), *([hours(row.remaining.hours)] if whole else [])])
    return found


def _items(found: Sequence[Item]) -> list[str]:
    absent = [item for item in found if not item.here]
    here = len(found) - len(absent)
    if not absent:
        return [f"downloads: none, all {here} inputs are here"]
    rows = [
        [
            item.path + (f"@{item.revision[:12]}" if item.revision else ""),
            size(item.bytes) if item.bytes else "?",
            item.licence,
            item.used,
            item.note,
        ]
        for item in absent
    ]
    left = ["  ".join(row).rstrip() for row in _left(["not here", "size", "licence", "for", "mind"], rows)]
    return [
        *left,
        f"{size(to_fetch(absent))} to download as far as sizes are known; {here} other inputs are here",
    ]


def _left(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Cells filled up to the width of their column, all to the left."""
    every = [list(heads), ["-" * len(head) for head in heads], *map(list, rows)]
    widths = [max(len(row[i]) for row in every) for i in range(len(heads))]
    return [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in every]
