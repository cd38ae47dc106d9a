"""A sentence with its evidence, and how numbers are put into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from palimpsest.reports import definitions
from palimpsest.reports.intervals import Estimate
from palimpsest.reports.select import Row, estimate

Level = Literal["finding", "open", "warning", "point"]


@dataclass(frozen=True)
class Evidence:
    """A number behind a sentence. anchor: the row of the page that holds it, or "" for a number computed from several rows.
    definition: the id of its metric's definition."""

    what: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    anchor: str = ""
    unit: str = "%"
    definition: str = ""


@dataclass(frozen=True)
class Takeaway:
    """A sentence. level: a "finding"; "open", because the data do not decide it; a "warning"; or "point", a ranking of numbers that
    come without intervals. rule: how the sentence comes about. says: the same for machines, as plain data."""

    id: str
    level: Level
    sentence: str
    rule: str
    evidence: tuple[Evidence, ...]
    says: Mapping[str, Any] = field(default_factory=dict)


def percent(value: float) -> str:
    """A fraction as percent with one decimal."""
    return f"{100 * value:.1f} %".replace("-", "\N{MINUS SIGN}")


def points(e: Estimate) -> str:
    """A difference of fractions in percentage points, with its interval."""
    text = f"{100 * e.value:+.1f} points, interval {100 * e.low:+.1f} to {100 * e.high:+.1f}"
    return text.replace("-", "\N{MINUS SIGN}")


def name(row: Row) -> str:
    """A method with its variant."""
    return f"{row['label']}, {row['variant']}" if row["variant"] else row["label"]


def refusing(row: Row) -> str:
    """Words for a row in which not every prompt got an image: an image that was not made counts as erased."""
    share = row.get("answered")
    return "" if share is None or share >= 1 else f" (which answered {percent(share)} of these prompts)"


def listed(items: Sequence[str], most: int = 4) -> str:
    """Items in a row; beyond `most`, how many more."""
    shown = list(items[:most])
    if len(items) > most:
        shown.append(f"{len(items) - most} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def from_row(row: Row, key: str = "ep") -> Evidence:
    """The value of a row as evidence."""
    what = f"{name(row)}: {key.upper() if key == 'ep' else key} on {row['judged_theme']}, {row['suite']}"
    return Evidence(
        what,
        row[key],
        row.get(f"{key}_low"),
        row.get(f"{key}_high"),
        row["n"],
        row["anchor"],
        definition=definitions.of(key),
    )


def from_estimate(what: str, e: Estimate, n: int | None = None, column: str = "ep") -> Evidence:
    """A number computed from several rows, or as the difference of two, as evidence. column: what it is a mean or difference of."""
    return Evidence(what, e.value, e.low, e.high, n, definition=definitions.of(column))


def count(n: int, noun: str) -> str:
    """A number with its noun, "1 pair" or "3 pairs"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def fitting(seconds: float) -> str:
    """Time spent on fitting, in words."""
    return f"{seconds:.0f} s of fitting" if seconds else "no fitting"


def decimal(value: float) -> str:
    """A number with one decimal and a real minus sign."""
    return f"{value:.1f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """A number between -1 and 1 with its sign."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


__all__ = [
    "Evidence", "Level", "Takeaway", "count", "decimal", "estimate", "fitting", "from_estimate", "from_row", "listed", "name",
    "percent", "points", "refusing", "signed",
]  # fmt: skip
